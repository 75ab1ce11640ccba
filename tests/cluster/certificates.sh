# The cluster's certificates and kubeconfigs, made anew at each start. One authority signs everything; who someone is says
# the subject (O is a group, CN a user; Kubernetes documents those that need no roles of their own).
# shellcheck shell=bash disable=SC2154

# Of a cluster that lives hours.
days=30

make_certificates() { # NODES
    local number name
    mkdir -p "$certificates" "$kubeconfigs"
    openssl ecparam -name prime256v1 -genkey -noout -out "$certificates/ca.key"
    openssl req -x509 -new -key "$certificates/ca.key" -subj /CN=test-cluster -days "$days" -out "$certificates/ca.crt" \
        -addext keyUsage=critical,keyCertSign,cRLSign
    # Signs and verifies service account tokens.
    openssl ecparam -name prime256v1 -genkey -noout -out "$certificates/service-accounts.key"

    certificate apiserver /CN=kube-apiserver "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,\
DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,\
IP:127.0.0.1,IP:$(node_address4 1),IP:$(node_address6 1),IP:$api_service"
    certificate apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
    certificate front-proxy-client /CN=front-proxy-client
    user admin /O=system:masters/CN=admin
    for name in kube-controller-manager kube-scheduler kube-proxy; do
        user "$name" "/CN=system:$name"
    done
    for ((number = 1; number <= $1; number++)); do
        name=$(node_name "$number")
        certificate "$name-server" "/O=system:nodes/CN=system:node:$name" \
            "DNS:$name,IP:$(node_address4 "$number"),IP:$(node_address6 "$number")"
        user "$name" "/O=system:nodes/CN=system:node:$name"
    done
}

# certificate NAME SUBJECT [ALTERNATIVE NAMES]
certificate() {
    local file=$certificates/$1
    openssl ecparam -name prime256v1 -genkey -noout -out "$file.key"
    openssl req -new -key "$file.key" -subj "$2" |
        openssl x509 -req -CA "$certificates/ca.crt" -CAkey "$certificates/ca.key" -days "$days" -out "$file.crt" \
            -extfile <(echo "basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=clientAuth,serverAuth
${3:+subjectAltName=$3}") 2>/dev/null
}

# user NAME SUBJECT: a certificate and the kubeconfig to use it.
user() {
    certificate "$1" "$2"
    cat >"$kubeconfigs/$1" <<END
apiVersion: v1
kind: Config
clusters:
  - name: test
    cluster: { server: "https://$(node_address4 1):6443", certificate-authority: "$certificates/ca.crt" }
users:
  - name: $1
    user: { client-certificate: "$certificates/$1.crt", client-key: "$certificates/$1.key" }
contexts: [{ name: test, context: { cluster: test, user: $1 } }]
current-context: test
END
}
