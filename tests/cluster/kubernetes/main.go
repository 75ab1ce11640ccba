// Command kubernetes is every part of Kubernetes that a node of the test cluster runs, and etcd, in one binary: built
// once instead of seven times, since the parts share most of their code. Which part it is says the name it was started
// by (a link), or else its first argument.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	_ "time/tzdata"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// Constructors, not commands: each registers flags and feature gates of the whole process, so only the chosen one may run.
var parts = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kube-proxy":              proxy.NewProxyCommand,
	"kubectl":                 kubectl.NewDefaultKubectlCommand,
	"kubelet": func() *cobra.Command {
		return kubelet.NewKubeletCommand(context.Background())
	},
}

func main() {
	part := filepath.Base(os.Args[0])
	if !known(part) && len(os.Args) > 1 {
		part = os.Args[1]
		os.Args = os.Args[1:]
	}
	switch {
	case part == "etcd":
		etcdmain.Main(os.Args)
	case known(part):
		os.Exit(cli.Run(parts[part]()))
	default:
		names := append(slices.Collect(maps.Keys(parts)), "etcd")
		slices.Sort(names)
		fmt.Fprintf(os.Stderr, "usage: kubernetes PART [ARGUMENTS], PART one of: %s\n", strings.Join(names, " "))
		os.Exit(2)
	}
}

func known(part string) bool {
	_, found := parts[part]
	return found || part == "etcd"
}
