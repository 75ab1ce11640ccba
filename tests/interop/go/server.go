package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	xdscredentials "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/xds"
)

// serve answers in plaintext.
func serve(name, address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.ForceServerCodec(raw{}))
	server.RegisterService(&talk, talker(name))
	fmt.Println("ready")
	return server.Serve(listener)
}

// serveXds answers as the control plane says.
func serveXds(name, address string) error {
	listener, err := net.Listen("tcp4", address)
	if err != nil {
		return err
	}
	credentials, err := xdscredentials.NewServerCredentials(
		xdscredentials.ServerOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		return err
	}
	mode := xds.ServingModeCallback(func(_ net.Addr, change xds.ServingModeChangeArgs) {
		if change.Mode == connectivity.ServingModeServing {
			fmt.Println("ready")
		} else {
			fmt.Println("not serving:", change.Err)
		}
	})
	server, err := xds.NewGRPCServer(grpc.Creds(credentials), grpc.ForceServerCodec(raw{}), mode)
	if err != nil {
		return err
	}
	server.RegisterService(&talk, talker(name))
	return server.Serve(listener)
}

// talker is a server by its name.
type talker string

var talk = grpc.ServiceDesc{
	ServiceName: "heddle.test.Talk",
	HandlerType: (*any)(nil),
	Methods:     []grpc.MethodDesc{method("Say"), method("Ask")},
}

func method(name string) grpc.MethodDesc {
	info := grpc.UnaryServerInfo{FullMethod: "/heddle.test.Talk/" + name}
	handler := func(server any, ctx context.Context, decode func(any) error, through grpc.UnaryServerInterceptor) (any, error) {
		var request []byte
		if err := decode(&request); err != nil {
			return nil, err
		}
		answer := func(ctx context.Context, _ any) (any, error) { return server.(talker).answer(ctx) }
		if through == nil {
			return answer(ctx, &request)
		}
		// How xDS decides about a call.
		return through(ctx, &request, &info, answer)
	}
	return grpc.MethodDesc{MethodName: name, Handler: handler}
}

func (t talker) answer(ctx context.Context) (*[]byte, error) {
	given, _ := metadata.FromIncomingContext(ctx)
	first := func(name string) string { return strings.Join(given.Get(name), ",") }
	if failing := first("x-fail"); failing == string(t) {
		return nil, status.Error(codes.Unavailable, "told to fail")
	}
	if wanted := number(first("x-attempts")); number(first("grpc-previous-rpc-attempts"))+1 < wanted {
		return nil, status.Error(codes.Unavailable, "told to wait for another attempt")
	}
	select {
	case <-time.After(time.Duration(number(first("x-millis"))) * time.Millisecond):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	name := []byte(t)
	return &name, nil
}

// number is 0 for nothing.
func number(text string) int {
	number, _ := strconv.Atoi(text)
	return number
}
