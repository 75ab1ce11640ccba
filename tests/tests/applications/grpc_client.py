"""Calls every method of grpc_server.py at the address given, and ends with `done` if all answers are right."""

import os
import queue
import sys

import grpc

unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
channel = grpc.insecure_channel(sys.argv[1], options=unlimited)
SECONDS = 20


def path(method):
    return f"/heddle.test.Talk/{method}"


def equal(what, got, wanted):
    if got != wanted:
        raise SystemExit(f"{what}: got {got!r}, wanted {wanted!r}")


def failure(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise SystemExit("it should have failed")


# Unary, small and large, with metadata both ways.
for payload in (b"", b"hello", os.urandom(1 << 20)):
    answer, call = channel.unary_unary(path("Echo")).with_call(
        payload, metadata=(("x-sent", "value"),), timeout=SECONDS
    )
    equal("echo", answer, payload)
    equal("initial metadata", dict(call.initial_metadata()).get("x-initial"), "value")
    trailing = dict(call.trailing_metadata())
    equal("trailing metadata", (trailing["x-trailing"], trailing["x-binary-bin"]), ("value", b"\x00\xff"))
    equal("status", call.code(), grpc.StatusCode.OK)

# Server streaming, also of nothing at all.
for length in (0, 1, 1000):
    numbers = list(channel.unary_stream(path("Count"))(str(length).encode(), timeout=SECONDS))
    equal("server streaming", numbers, [str(number).encode() for number in range(length)])

# Client streaming.
total = channel.stream_unary(path("Add"))((str(number).encode() for number in range(100)), timeout=SECONDS)
equal("client streaming", total, b"4950")

# Both ways: each message is sent only when the one before was answered, so nothing may be held back.
say = queue.SimpleQueue()
answers = channel.stream_stream(path("Chat"))(iter(say.get, None), timeout=SECONDS)
for number in range(100):
    message = str(number).encode()
    say.put(message)
    equal("ping-pong", next(answers), b"re: " + message)
say.put(None)
equal("end of ping-pong", list(answers), [])
equal("status of ping-pong", answers.code(), grpc.StatusCode.OK)

# A status with a message and trailers.
error = failure(lambda: channel.unary_unary(path("Fail"))(b"", timeout=SECONDS))
equal("status", error.code(), grpc.StatusCode.FAILED_PRECONDITION)
equal("message", error.details(), "not today: \u00e4 100%")
equal("why", dict(error.trailing_metadata()).get("x-why"), "asked")

# What does not exist.
error = failure(lambda: channel.unary_unary(path("Nothing"))(b"", timeout=SECONDS))
equal("unknown method", error.code(), grpc.StatusCode.UNIMPLEMENTED)

# A call that is cancelled while it lasts ends on the server too.
call = channel.unary_stream(path("Hang"))(b"")
equal("before it is cancelled", next(call), b"waiting")
call.cancel()
equal("ended on the server", channel.unary_unary(path("HasEnded"))(b"", timeout=SECONDS), b"True")

# A deadline.
error = failure(lambda: channel.unary_unary(path("Sleep"))(b"", timeout=0.2))
equal("deadline", error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)

channel.close()
print("done")
