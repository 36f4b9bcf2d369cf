"""Object stores on this machine, speaking the protocols of S3 and of Google Cloud Storage, and a
proxy that makes one of them slow, busy, forgetful or read-only.
"""

import contextlib
import http.client
import random
import socket
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.peers import require

BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>busy</Message></Error>"
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>no</Message></Error>"
WRITES = ("PUT", "POST", "DELETE")
# What a proxy may not pass on: it speaks of one connection.
_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "host")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def s3_environment(endpoint):
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def s3_server():
    """The endpoint of an S3 server (moto's) with a bucket called "bucket"."""
    server_module, _ = require("moto.server", "s3fs")
    server = server_module.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    request = urllib.request.Request(f"{endpoint}/bucket", method="PUT")
    urllib.request.urlopen(request, timeout=20).read()
    yield endpoint
    server.stop()


@contextlib.contextmanager
def gcs_server():
    """The environment of a client of an emulator of Google Cloud Storage, with a "bucket"."""
    emulator, _ = require("gcp_storage_emulator.server", "gcsfs")
    port = free_port()
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    # The second asks gcsfs for its plain file system; the other looks for credentials each time.
    yield {
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    server.stop()


@dataclass
class Behaviour:
    """How a proxy treats requests; the fields may be changed while it runs.

    Attributes:
        delay: seconds before each request is passed on.
        busy: share of requests that are answered 503 SlowDown.
        read_only: whether writes are answered 403.
        stale: seconds for which a listing shows what was there before.
        requests, busy_answers, listings: how many there were.
        sent: bytes of objects that were written.
    """

    delay: float = 0.0
    busy: float = 0.0
    read_only: bool = False
    stale: float = 0.0
    requests: int = 0
    busy_answers: int = 0
    listings: int = 0
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextlib.contextmanager
def proxy(endpoint, behaviour):
    """The endpoint of a proxy in front of a server."""
    target = endpoint.removeprefix("http://")
    chance = random.Random(0)
    listed: dict[str, tuple[float, tuple[int, bytes, list[tuple[str, str]]]]] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def pass_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            is_listing = self.command == "GET" and "list-type=" in self.path
            with behaviour.lock:
                behaviour.requests += 1
                behaviour.listings += is_listing
                busy = chance.random() < behaviour.busy
                behaviour.busy_answers += busy
            time.sleep(behaviour.delay)
            if busy:
                return self.answer(503, BUSY)
            if behaviour.read_only and self.command in WRITES:
                return self.answer(403, DENIED)
            old = listed.get(self.path)
            if is_listing and old and time.monotonic() - old[0] < behaviour.stale:
                return self.answer(*old[1])
            connection = http.client.HTTPConnection(target, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
            headers["Host"] = self.headers["Host"]
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            found = response.status, response.read(), response.getheaders()
            connection.close()
            if is_listing:
                listed[self.path] = time.monotonic(), found
            if self.command in ("PUT", "POST") and response.status < 300:
                with behaviour.lock:
                    behaviour.sent += len(body)
            return self.answer(*found)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

        def answer(self, status, content, headers=()):
            self.send_response(status)
            length = str(len(content))
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()
