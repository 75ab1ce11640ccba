"""Calls a gRPC server's health service (grpc.health.v1) at the address of the first argument until it is told to end.

Twenty calls a second on one channel, and one stream that is meant to last: it ends with the server at its other end and is opened
again. At SIGINT it prints how often each came, one `call OK=count`, `stream UNAVAILABLE=count` or `opened=count` a line.
"""

import signal
import sys
import threading
from collections import Counter

import grpc

channel = grpc.insecure_channel(sys.argv[1])
ended = threading.Event()
signal.signal(signal.SIGINT, lambda *_: ended.set())
seen = Counter()


def calls():
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    while not ended.wait(0.05):
        try:
            check(b"", timeout=20)
            seen["call OK"] += 1
        except grpc.RpcError as error:
            seen[f"call {error.code().name} {error.details()}"] += 1


def stream():
    watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
    while not ended.is_set():
        opened = False
        answers = watch(b"")
        try:
            for _ in answers:
                seen["opened"] += not opened
                opened = True
            code, details = answers.code(), ""
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
        if not ended.is_set():
            seen[f"{'stream' if opened else 'not opened'} {code.name} {details}"] += 1


for work in (calls, stream):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
ended.wait()
for name, count in sorted(seen.items()):
    print(f"{name}={count}")
