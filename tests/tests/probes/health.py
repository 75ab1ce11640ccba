"""gRPC's health protocol on all addresses, port 9090; the two messages it needs are written by hand."""

from concurrent import futures

import grpc

# HealthCheckResponse.status: SERVING, NOT_SERVING.
STATUSES = {"": b"\x08\x01", "shop.Cart": b"\x08\x01", "shop.Sick": b"\x08\x02"}


def check(request, context):
    # HealthCheckRequest.service is field 1, a string; an empty one is left out.
    service = request[2:].decode() if request else ""
    if service not in STATUSES:
        context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
    return STATUSES[service]


handlers = {"Check": grpc.unary_unary_rpc_method_handler(check)}
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),))
assert server.add_insecure_port("[::]:9090") == 9090
server.start()
print("ready", flush=True)
server.wait_for_termination()
