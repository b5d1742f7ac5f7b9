"""A small web service, made to show what a rolling update must not break.

GET  /healthz          ok, once it serves
GET  /version          the version of this build
GET  /work?id=ID       does a little work and answers with ID
POST /work             the same, the id is the body
     ..&ms=1500        takes that long

Each request's id is written to standard output before the answer is sent, so that the log of a
replica says exactly what it did. SIGTERM ends the process at once: whatever is in flight then is lost,
which is the worst case for whoever rolls it out.
"""

import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from version import VERSION

PORT = 8080
LOG_LOCK = threading.Lock()


def parse_work(path, body):
    """The id and the milliseconds of a request for work; raises ValueError for nonsense."""
    query = parse_qs(urlsplit(path).query)
    ident = body.decode("ascii") if body else query.get("id", [""])[0]
    if not ident or len(ident) > 64 or not ident.replace("-", "").isalnum():
        raise ValueError("an id is 1 to 64 letters, digits and dashes")
    ms = int(query.get("ms", ["0"])[0])
    if not 0 <= ms <= 10_000:
        raise ValueError("ms is 0 to 10000")
    return ident, ms


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def answer(self, status, text):
        data = (text + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Version", VERSION)
        self.end_headers()
        self.wfile.write(data)

    def work(self, body):
        try:
            ident, ms = parse_work(self.path, body)
        except ValueError as e:
            self.answer(400, str(e))
            return
        time.sleep(ms / 1000)
        with LOG_LOCK:
            sys.stdout.write(f"id={ident} version={VERSION}\n")
            sys.stdout.flush()
        self.answer(200, f"{ident} {VERSION}")

    def do_GET(self):
        route = urlsplit(self.path).path
        if route == "/healthz":
            self.answer(200, "ok")
        elif route == "/version":
            self.answer(200, VERSION)
        elif route == "/work":
            self.work(b"")
        else:
            self.answer(404, "not found")

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= 1024:
            self.close_connection = True
            self.answer(413, "a body of 1 to 1024 bytes is needed")
            return
        self.work(self.rfile.read(length))

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


def main():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    Server(("0.0.0.0", PORT), Handler).serve_forever()


if __name__ == "__main__":
    main()
