"""gRPC's C++ core under Python as an application without a sidecar: a client of xDS targets that calls for whoever asks it.

Its other languages, go/ and java/, behave alike; what they are told and what they say stands in protocol.md.
"""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import grpc
import grpc.experimental
import grpc_csds

channels = {}
lock = threading.Lock()


def channel_to(target):
    """The one channel to a target."""
    with lock:
        if target not in channels:
            plaintext = grpc.experimental.insecure_channel_credentials()
            channels[target] = grpc.secure_channel(target, grpc.xds_channel_credentials(plaintext))
        return channels[target]


def make(query):
    """What came of the calls that a query asks for."""

    def one(name):
        return query.get(name, [""])[0]

    call = channel_to(one("target")).unary_unary(f"/heddle.test.Talk/{one('method')}")
    headers = [tuple(header.split(":", 1)) for header in query.get("header", [])]
    left, ended, outcomes = iter(range(int(one("count")))), threading.Event(), []

    def work():
        while not ended.is_set() and next(left, None) is not None:
            outcome = {"server": "", "status": 0, "message": ""}
            begun = time.monotonic()
            try:
                outcome["server"] = call(b"", timeout=int(one("deadline")) / 1000, metadata=headers).decode()
            except grpc.RpcError as error:
                outcome["status"], outcome["message"] = error.code().value[0], error.details()
            outcome["millis"] = int((time.monotonic() - begun) * 1000)
            outcomes.append(outcome)
            if one("until") and outcome["server"] == one("until"):
                ended.set()

    workers = int(one("at-once"))
    with ThreadPoolExecutor(workers) as pool:
        for running in [pool.submit(work) for _ in range(workers)]:
            running.result()
    return outcomes


class Calls(BaseHTTPRequestHandler):
    def do_GET(self):
        outcomes = make(parse_qs(urlsplit(self.path).query))
        self.send_response(200)
        self.end_headers()
        self.wfile.write("".join(json.dumps(outcome) + "\n" for outcome in outcomes).encode())

    def log_message(self, *_):
        pass


# CSDS: what xDS resources this process has, and what became of them.
statuses = grpc.server(ThreadPoolExecutor(max_workers=1))
grpc_csds.add_csds_servicer(statuses)
if statuses.add_insecure_port("127.0.0.1:9001") == 0:
    raise SystemExit("port 9001 is taken")
statuses.start()
server = ThreadingHTTPServer(("127.0.0.1", 9000), Calls)
print("ready")
server.serve_forever()
