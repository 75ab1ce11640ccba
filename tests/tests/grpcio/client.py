"""Calls the xDS target of the first argument for whoever asks on 127.0.0.1:9000.

`GET /<method>/<count>` makes so many calls one after another, on the one channel there is, and answers with who
answered how often, one `name=count` a line. The bootstrap comes by GRPC_XDS_BOOTSTRAP.
"""

import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc

channel = grpc.insecure_channel(sys.argv[1])
SECONDS = 20


class Calls(BaseHTTPRequestHandler):
    def do_GET(self):
        _, method, count = self.path.split("/")
        call = channel.unary_unary(f"/heddle.test.Talk/{method}")
        answers = Counter()
        for _ in range(int(count)):
            try:
                answers[call(b"", timeout=SECONDS, wait_for_ready=True).decode()] += 1
            except grpc.RpcError as error:
                answers[f"{error.code().name}: {error.details()}"] += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write("".join(f"{name}={count}\n" for name, count in sorted(answers.items())).encode())

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 9000), Calls)
print("ready")
server.serve_forever()
