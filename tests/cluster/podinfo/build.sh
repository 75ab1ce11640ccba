# Builds podinfo, an application that knows nothing of meshes, into an image for the test cluster, if the cache does not
# have it.
# shellcheck shell=bash disable=SC2034,SC2154

podinfo_module=$here/podinfo

build_podinfo() {
    local folder
    go_build podinfo "$podinfo_module" 1 build -ldflags "-s -w" github.com/stefanprodan/podinfo/cmd/podinfo
    folder=$(go_folder podinfo "$podinfo_module")
    podinfo_archive=$folder/image.tar
    [ -e "$podinfo_archive" ] ||
        "$here/../../scripts/image" --name local.test/podinfo:1 --entrypoint /podinfo --user 1000 --directory /data:1777 \
            --output "$podinfo_archive" /podinfo="$folder/podinfo:0755"
}
