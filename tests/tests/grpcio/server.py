"""A gRPC service on all addresses, port 50051, that answers every method with its own name, the first argument."""

import sys
from concurrent import futures

import grpc

name = sys.argv[1].encode()
method = grpc.unary_unary_rpc_method_handler(lambda request, context: name)
server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
handlers = grpc.method_handlers_generic_handler("heddle.test.Talk", {"Say": method, "Ask": method})
server.add_generic_rpc_handlers((handlers,))
if server.add_insecure_port("0.0.0.0:50051") == 0:
    raise SystemExit("port 50051 is taken")
server.start()
print("ready")
server.wait_for_termination()
