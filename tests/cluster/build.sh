# Builds what a node runs, if the cache does not have it: programs from the Go modules here, images from those and from
# Debian's files. A program's folder is named by a hash of its module's files, so a change of them builds anew.
# shellcheck shell=bash disable=SC2034,SC2154

# go_folder NAME MODULE: where what is built from the module under that name lies, or would.
go_folder() {
    local hash
    hash=$(cd "$2" && find . -name 'go.*' -o -name '*.go' | sort | xargs cat | sha256sum)
    echo "$cache/$1-${hash:0:16}"
}

# module_version MODULE PATH: as go.mod requires it.
module_version() { sed -nE "s|^(require )?[[:space:]]*$2 v([^ ]+).*|\2|p" "$1/go.mod"; }

# go_build NAME MODULE MINUTES COMMAND ARGUMENT...: `go COMMAND` (words apart by spaces) into the program NAME of `go_folder`, unless it is there.
go_build() {
    local name=$1 module=$2 minutes=$3 command folder lock
    read -ra command <<<"$4"
    shift 4
    folder=$(go_folder "$name" "$module")
    [ -x "$folder/$name" ] && return
    mkdir -p "$folder"
    # Two builds at once would only take twice as long; the second finds the first one's program.
    exec {lock}>"$folder/lock"
    flock "$lock"
    if [ ! -x "$folder/$name" ]; then
        require_go "$module"
        say "building $name into $folder: up to $minutes minutes on two cores if Go has nothing of it cached"
        SECONDS=0
        (
            cd "$module" || exit
            CGO_ENABLED=0 GOFLAGS=-mod=readonly go "${command[@]}" -trimpath -buildvcs=false -o "$folder/$name.part" "$@"
        )
        mv "$folder/$name.part" "$folder/$name"
        say "built $name in $SECONDS s"
    fi
    exec {lock}>&-
}

require_go() {
    local said
    command -v go >/dev/null || die "Go is not installed: install Go $(sed -n 's/^go //p' "$1/go.mod") or newer (go.dev)"
    said=$(cd "$1" && go list -m 2>&1) ||
        die "$(go version) cannot build $1, which asks for Go $(sed -n 's/^go //p' "$1/go.mod") or newer: $said"
}

build_kubernetes() {
    local module=$here/kubernetes version flags="-s -w" package folder part
    version=$(module_version "$module" k8s.io/kubernetes)
    IFS=. read -r major minor _ <<<"$version"
    # Without these it would call itself v0.0.0, and clients go by it.
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $package.gitVersion=v$version -X $package.gitMajor=$major -X $package.gitMinor=$minor"
        flags+=" -X $package.gitTreeState=clean -X $package.gitCommit=none -X $package.buildDate=2026-01-01T00:00:00Z"
    done
    go_build kubernetes "$module" 8 build -ldflags "$flags" .
    folder=$(go_folder kubernetes "$module")
    for part in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
        [ -e "$folder/$part" ] || ln -s kubernetes "$folder/$part"
    done
    programs=$folder
}

build_coredns() {
    coredns=$here/coredns
    go_build coredns "$coredns" 4 build -ldflags "-s -w" .
    coredns_version=$(module_version "$coredns" github.com/coredns/coredns)
}

# The images every node has from its start. They are named after a host that cannot exist, so nobody tries to pull them.
build_images() {
    local hash image=$here/../../scripts/image unfinished applet links=()
    hash=$(cat "$image" "$here/build.sh" "$here/files/pause.c" "$here"/coredns/go.* /bin/busybox | sha256sum)
    images=$cache/images-${hash:0:16}
    [ -d "$images" ] && return
    say "making images in $images"
    unfinished=$(mktemp -d "$cache/unfinished.XXXXXX")
    cc -static -Os -s -o "$unfinished/pause" "$here/files/pause.c"
    "$image" --name local.test/pause:1 --entrypoint /pause --user 65535 \
        --output "$unfinished/pause.tar" /pause="$unfinished/pause"
    "$image" --name "local.test/coredns:$coredns_version" --entrypoint /coredns \
        --output "$unfinished/coredns.tar" /coredns="$(go_folder coredns "$coredns")/coredns"
    for applet in $(/bin/busybox --list | grep -vx busybox); do
        links+=(--link "/bin/$applet=busybox")
    done
    "$image" --name local.test/busybox:1 --cmd /bin/sh --directory /tmp:1777 "${links[@]}" \
        --output "$unfinished/busybox.tar" /bin/busybox=/bin/busybox
    rm "$unfinished/pause"
    mv --no-target-directory "$unfinished" "$images" 2>/dev/null || rm -r "$unfinished"
}

build() {
    mkdir -p "$cache"
    build_kubernetes
    build_coredns
    build_images
}
