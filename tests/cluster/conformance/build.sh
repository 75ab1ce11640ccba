# Builds the conformance suite and the image its tests send traffic with, if the cache does not have them.
# shellcheck shell=bash disable=SC2034,SC2154

suite_module=$here/conformance/suite
echo_module=$here/conformance/echo
# The image the suite's manifests ask for is Istio's echo application, server and client.
echo_package=istio.io/istio/pkg/test/echo/cmd

build_suite() {
    local module
    go_build gateway-api-suite "$suite_module" 5 "test -c" .
    suite=$(go_folder gateway-api-suite "$suite_module")
    [ -d "$suite/crds" ] && return
    # The suite wants the definitions of its own version.
    require_go "$suite_module"
    module=$(cd "$suite_module" && go mod download sigs.k8s.io/gateway-api && go list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api)
    rm -rf "$suite/crds.part"
    mkdir "$suite/crds.part"
    cp "$module"/config/crd/experimental/gateway.networking.*.yaml "$suite/crds.part/"
    module=$(cd "$suite_module" && go list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api/conformance)
    sed -nE 's/^ *image: *([^ ]*echo[^ ]*)$/\1/p' "$module/mesh/manifests.yaml" | sort -u >"$suite/echo-image"
    mv "$suite/crds.part" "$suite/crds"
}

build_echo() {
    local folder program hash image=$here/../../scripts/image
    for program in server client; do
        go_build "echo-$program" "$echo_module" 5 build -ldflags "-s -w" "$echo_package/$program"
    done
    hash=$(cat "$suite/echo-image" "$image" "$here/conformance/build.sh" "$echo_module"/go.* | sha256sum)
    folder=$cache/echo-image-${hash:0:16}
    echo_archive=$folder/echo.tar
    [ -e "$echo_archive" ] && return
    mkdir -p "$folder"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=echo -addext subjectAltName=DNS:echo \
        -days 3650 -keyout "$folder/key.pem" -out "$folder/cert.pem" 2>/dev/null
    # Its user must be one that a mesh does not take for its own sidecar.
    "$image" --name "$(cat "$suite/echo-image")" --entrypoint /usr/local/bin/server --user 1338 --output "$echo_archive" \
        /usr/local/bin/server="$(go_folder echo-server "$echo_module")/echo-server:0755" \
        /usr/local/bin/client="$(go_folder echo-client "$echo_module")/echo-client:0755" \
        /cert.crt="$folder/cert.pem:0444" /cert.key="$folder/key.pem:0444"
}
