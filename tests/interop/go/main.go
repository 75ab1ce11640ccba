// Command interop is gRPC's Go implementation as an application without a sidecar: a client of xDS targets that calls for
// whoever asks it, and a server that answers with its name, with or without xDS.
//
// Its other languages, java/ and client.py, behave alike; what they are told and what they say stands in protocol.md.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"

	status "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/xds/csds"
)

func main() {
	name := flag.String("name", "", "the name a server answers with")
	listen := flag.String("listen", "", "be a server here")
	xds := flag.Bool("xds", false, "the server is told by xDS how to serve")
	flag.Parse()
	encoding.RegisterCodec(raw{})
	if *listen != "" && !*xds {
		log.Fatal(serve(*name, *listen))
	}
	statuses()
	if *listen != "" {
		log.Fatal(serveXds(*name, *listen))
	}
	log.Fatal(answer())
}

// statuses serves CSDS: what xDS resources this process has, and what became of them.
func statuses() {
	listener, err := net.Listen("tcp", "127.0.0.1:9001")
	if err != nil {
		log.Fatal(err)
	}
	service, err := csds.NewClientStatusDiscoveryServer()
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	status.RegisterClientStatusDiscoveryServiceServer(server, service)
	go func() { log.Fatal(server.Serve(listener)) }()
}

// raw is the messages themselves: bytes.
type raw struct{}

func (raw) Name() string { return "raw" }

func (raw) Marshal(message any) ([]byte, error) {
	bytes, ok := message.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("%T is not bytes", message)
	}
	return *bytes, nil
}

func (raw) Unmarshal(data []byte, message any) error {
	bytes, ok := message.(*[]byte)
	if !ok {
		return fmt.Errorf("%T is not bytes", message)
	}
	*bytes = data
	return nil
}
