"""A gRPC server on all addresses, port 50051; messages are bytes, so no generated code is needed."""

import threading
from concurrent import futures

import grpc

# Set when the call of `hang` is over.
ended = threading.Event()


def echo(request, context):
    # What the caller sent as metadata goes back as initial and trailing metadata.
    sent = dict(context.invocation_metadata()).get("x-sent", "")
    context.send_initial_metadata((("x-initial", sent),))
    context.set_trailing_metadata((("x-trailing", sent), ("x-binary-bin", b"\x00\xff")))
    return request


def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def add(requests, context):
    return str(sum(int(request) for request in requests)).encode()


def chat(requests, context):
    for request in requests:
        yield b"re: " + request


def fail(request, context):
    context.set_trailing_metadata((("x-why", "asked"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: \u00e4 100%")


def hang(request, context):
    context.add_callback(ended.set)
    yield b"waiting"
    ended.wait()


def sleep(request, context):
    done = threading.Event()
    context.add_callback(done.set)
    done.wait()
    return b""


def has_ended(request, context):
    return str(ended.wait(10)).encode()


METHODS = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Add": grpc.stream_unary_rpc_method_handler(add),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Hang": grpc.unary_stream_rpc_method_handler(hang),
    "Sleep": grpc.unary_unary_rpc_method_handler(sleep),
    "HasEnded": grpc.unary_unary_rpc_method_handler(has_ended),
}

unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=unlimited)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("heddle.test.Talk", METHODS),))
if server.add_insecure_port("0.0.0.0:50051") == 0:
    raise SystemExit("port 50051 is taken")
server.start()
print("ready")
server.wait_for_termination()
