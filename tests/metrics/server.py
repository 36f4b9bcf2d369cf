"""An OpenAI-compatible server on the loopback, for tests."""

import http.server
import json
import threading
import time

from jaxloop.metrics.endpoint import Endpoint


class Server:
    """An OpenAI-compatible server on the loopback: answers with `reply(body, number of the
    request)`, a dict, bytes, or (status, headers, bytes).
    """

    def __init__(self, reply, delay=0.0, port=0):
        self.requests, self.headers, self.running, self.most = [], [], 0, 0
        lock, outer = threading.Lock(), self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append((self.path, body))
                    outer.headers.append(dict(self.headers))
                    number = len(outer.requests)
                    outer.running += 1
                    outer.most = max(outer.most, outer.running)
                time.sleep(delay)
                try:
                    found = reply(body, number)
                    status, headers, data = (
                        found
                        if isinstance(found, tuple)
                        else (
                            200,
                            {},
                            found if isinstance(found, bytes) else json.dumps(found).encode(),
                        )
                    )
                    with lock:
                        outer.running -= 1
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(data)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # the client has gone
                    pass

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def endpoint(self, **changes):
        return Endpoint(
            **dict(
                url=self.url,
                model="m",
                key="JAXLOOP_TEST_KEY",
                retries=3,
                longest_wait=0.05,
                timeout=20.0,
            )
            | changes
        )


def completion(text, *top):
    logprobs = (
        {
            "content": [
                {
                    "token": top[0][0],
                    "logprob": top[0][1],
                    "top_logprobs": [{"token": t, "logprob": p} for t, p in top],
                }
            ]
        }
        if top
        else None
    )
    return {"choices": [{"message": {"role": "assistant", "content": text}, "logprobs": logprobs}]}
