# Builds Prometheus into an image for the test cluster, if the cache does not have it.
# shellcheck shell=bash disable=SC2034,SC2154

prometheus_module=$here/prometheus
prometheus_image=local.test/prometheus:1

build_prometheus() {
    local folder
    # Debian's has no discovery for Kubernetes; of all others none is needed, and each is a cloud's whole client.
    go_build prometheus "$prometheus_module" 4 build -ldflags "-s -w" -tags remove_all_sd,enable_kubernetes_sd \
        github.com/prometheus/prometheus/cmd/prometheus
    folder=$(go_folder prometheus "$prometheus_module")
    prometheus_archive=$folder/image.tar
    [ -e "$prometheus_archive" ] ||
        "$here/../../scripts/image" --name "$prometheus_image" --entrypoint /prometheus --user 65534 --directory /data:1777 \
            --output "$prometheus_archive" /prometheus="$folder/prometheus:0755"
}
