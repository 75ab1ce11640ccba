# Names, addresses and folders of the test cluster; read by `cluster` and `node`. Every cluster has the same addresses:
# they are in its own network namespaces.
# shellcheck shell=bash disable=SC2034

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Programs and images, built once: outside the work tree, so that a clean clone finds them again.
cache=${HEDDLE_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/heddle}
# A cluster that is up: another folder is another cluster.
state=$(realpath -m "${HEDDLE_CLUSTER:-$cache/cluster}")
certificates=$state/certificates
kubeconfigs=$state/kubeconfigs

cluster_pods=10.244.0.0/16,fd00:10:244::/48
services=10.96.0.0/16,fd00:10:96::/112
# The first address of `services` is the API server's, by Kubernetes' own rule.
api_service=10.96.0.1
dns=10.96.0.10

# Nodes are numbered from 1; the first has the control plane.
node_name() { echo "node$1"; }
node_folder() { echo "$state/$(node_name "$1")"; }
node_address4() { echo "10.250.0.$1"; }
node_address6() { echo "fd00:10:250::$1"; }
node_pods4() { echo "10.244.$(($1 - 1)).0/24"; }
node_pods6() { echo "fd00:10:244:$1::/64"; }
# Below each controller's mount point: two clusters differ in the state folder.
cluster_cgroup() { echo "/heddle-$(sha256sum <<<"$state" | cut -c1-12)"; }
node_cgroup() { echo "$(cluster_cgroup)/$(node_name "$1")"; }
cgroup_controllers=(cpu cpuacct cpuset memory devices freezer blkio pids systemd)

# fill FILE NUMBER NAME=VALUE...: the file with what stands for each @NAME@, as node NUMBER sees it.
fill() {
    local file=$1 number=$2 pair script=()
    shift 2
    set -- name="$(node_name "$number")" node="$(node_folder "$number")" cgroup="$(node_cgroup "$number")" \
        pods4="$(node_pods4 "$number")" pods6="$(node_pods6 "$number")" cluster_pods="$cluster_pods" dns="$dns" \
        certificates="$certificates" kubeconfigs="$kubeconfigs" "$@"
    for pair in "$@"; do
        script+=(-e "s|@${pair%%=*}@|${pair#*=}|g")
    done
    sed "${script[@]}" "$here/files/$file"
}

# Of its own, since a signal may end the script while it runs a command whose words nobody wants to read.
exec {voice}>&2
say() { echo "cluster: $*" >&"$voice"; }
die() {
    say "$@"
    exit 1
}

# within SECONDS WHAT COMMAND...: runs the command until it succeeds; says what did not happen if it never does.
within() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || {
            say "did not happen in time: $what"
            return 1
        }
        sleep 0.1
    done
}
