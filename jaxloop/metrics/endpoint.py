"""Chat completions from any OpenAI-compatible endpoint: bounded concurrency, retries, timeouts, and
a cache so that nothing is paid for twice.

Only the standard library is used. The key is read from the environment when a request is made; it
is in no object, no cache and no message.
"""

import contextlib
import email.utils
import hashlib
import json
import math
import os
import random
import sqlite3
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_PASSING = frozenset(
    {408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 524, 529}
)  # statuses after which trying again may help
_LONGEST_REPLY = 1 << 22


@dataclass(frozen=True)
class Endpoint:
    """Where chat completions come from, and how they are asked for.

    url             up to and without "/chat/completions", such as "http://localhost:8000/v1"
    model           the served model's name
    key             the environment variable that holds the key; no header is sent where it is unset
    concurrency     requests in flight at once
    timeout         seconds that one request may stay silent
    retries         tries after the first that fail before the endpoint counts as unreachable
    longest_wait    seconds between two tries, at most
    temperature, max_tokens, top_logprobs   of the request; top_logprobs 0 asks for none
    cache           SQLite file of replies by content; None keeps nothing
    """

    url: str
    model: str
    key: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 60.0
    retries: int = 6
    longest_wait: float = 60.0
    temperature: float = 0.01
    max_tokens: int = 8
    top_logprobs: int = 20
    cache: str | None = None

    def __post_init__(self):
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"endpoint.url is {self.url!r}, an address that begins with http:// or https:// "
                "is needed."
            )
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "endpoint.url has a password or a query in it; put the key into the environment "
                f"variable {self.key} instead."
            )
        if not self.model:
            raise ValueError("endpoint.model is empty, the name of a served model is needed.")
        for name, least in dict(
            concurrency=1,
            timeout=1e-3,
            retries=0,
            longest_wait=0,
            temperature=0,
            max_tokens=1,
            top_logprobs=0,
        ).items():
            if not getattr(self, name) >= least:
                raise ValueError(
                    f"endpoint.{name} is {getattr(self, name)}, at least {least} is needed."
                )


class Reply(NamedTuple):
    """What the model wrote, and the likeliest first tokens with their log-probabilities, where the
    endpoint tells them.
    """

    text: str
    first: tuple[tuple[str, float], ...] = ()


class Unreachable(RuntimeError):
    """The endpoint refused, or did not answer within its retries. What was answered before is in
    the cache.
    """


def complete(endpoint: Endpoint, conversations: Sequence[Sequence[dict]]) -> list[Reply]:
    """A reply to every conversation (lists of {"role", "content"}), in order; equal conversations
    are asked once.

    Replies of the cache cost nothing. Statuses that pass (429, 5xx, …), silence and broken
    connections are tried again after a wait that doubles, with jitter, and is never shorter than
    the Retry-After of the answer. Raises `Unreachable`, after which no new request is made, when
    retries are used up or the endpoint refuses (a wrong key, an unknown model).
    """
    bodies = [_body(endpoint, conversation) for conversation in conversations]
    keys = [hashlib.sha256(f"{endpoint.url}\n{body}".encode()).hexdigest() for body in bodies]
    wanted = dict(zip(keys, bodies, strict=True))
    with _Cache(endpoint.cache) as cache:
        found = cache.read(wanted)
        todo = [key for key in wanted if key not in found]
        stop = threading.Event()

        def ask(key):
            try:
                reply = _request(endpoint, wanted[key], stop)
                cache.write(key, reply)
            except BaseException:
                stop.set()  # before this thread takes the next request
                raise
            return key, reply

        with ThreadPoolExecutor(max(1, min(endpoint.concurrency, len(todo)))) as pool:
            futures = [pool.submit(ask, key) for key in todo]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            # Ctrl-C and a failed request alike: what waits is dropped, what is asked already is
            # kept
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)
            failures = [f.exception() for f in futures if not f.cancelled() and f.exception()]
            if failures:
                # The first cause, not what the others say once they were stopped.
                raise next((e for e in failures if not isinstance(e, _Stopped)), failures[0])
            found |= dict(f.result() for f in futures)
    return [found[key] for key in keys]


def _body(endpoint: Endpoint, conversation) -> str:
    body = dict(
        model=endpoint.model,
        messages=list(conversation),
        temperature=endpoint.temperature,
        max_tokens=endpoint.max_tokens,
    )
    if endpoint.top_logprobs:
        body |= dict(logprobs=True, top_logprobs=endpoint.top_logprobs)
    return json.dumps(body, sort_keys=True)  # ASCII, so lone surrogates pass as escapes


class _Stopped(Unreachable):
    """Another request has found the endpoint unreachable."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: following one would hand the key to another host."""

    def redirect_request(self, *args, **kwargs):
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _request(endpoint: Endpoint, body: str, stop: threading.Event) -> Reply:
    address = endpoint.url.rstrip("/") + "/chat/completions"
    where = f"{endpoint.model} at {endpoint.url}"
    for attempt in range(endpoint.retries + 1):
        if stop.is_set():
            raise _Stopped(f"{where} is not asked any more.")
        headers = {"Content-Type": "application/json", "User-Agent": "jaxloop"}
        if secret := os.environ.get(endpoint.key, "").strip():
            headers["Authorization"] = f"Bearer {secret}"
        least = 0.0
        try:
            with _OPENER.open(
                urllib.request.Request(address, body.encode(), headers), timeout=endpoint.timeout
            ) as answer:
                return _parse(answer.read(_LONGEST_REPLY))
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                if error.code not in _PASSING:
                    hint = (
                        f"; the key is read from the environment variable {endpoint.key}"
                        if error.code in (401, 403)
                        else ""
                    )
                    raise Unreachable(f"{where} refuses with status {error.code}{hint}.") from None
                problem, least = (
                    f"status {error.code}",
                    _retry_after(error.headers.get("Retry-After")),
                )
        except ValueError as error:
            problem = f"a reply that is no chat completion ({error})"
        except (
            OSError
        ) as error:  # no connection, a broken one, or silence; URLError and timeouts are OSErrors
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        except Exception as error:  # a broken HTTP message
            problem = type(error).__name__
        if attempt < endpoint.retries:
            backoff = min(endpoint.longest_wait, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)
            stop.wait(min(endpoint.longest_wait, least) + backoff if least else backoff)
    raise Unreachable(
        f"{where} did not answer in {endpoint.retries + 1} tries; the last one gave {problem}."
    )


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header, which holds a number or a date; 0 where it says nothing."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _parse(data: bytes) -> Reply:
    """ValueError for anything but a chat completion."""
    try:
        choice = json.loads(data)["choices"][0]
        text = choice["message"]["content"] or ""
        content = (choice.get("logprobs") or {}).get("content") or []
        first = (
            tuple(
                (str(t["token"]), float(t["logprob"])) for t in content[0].get("top_logprobs") or ()
            )
            if content
            else ()
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from None
    if not isinstance(text, str):
        raise ValueError(f"content is {type(text).__name__}")
    return Reply(text, first)


class _Cache:
    """Replies by content, in SQLite: each is there for good as soon as `write` returns. The request
    is kept only as its hash.
    """

    def __init__(self, path: str | None):
        self.lock, self.db = threading.Lock(), None
        if path is None:
            return
        file = Path(path).expanduser()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(
                file, timeout=60, isolation_level=None, check_same_thread=False
            )
            self.db.execute(
                "CREATE TABLE IF NOT EXISTS replies (request TEXT PRIMARY KEY, reply TEXT NOT "
                "NULL) WITHOUT ROWID"
            )
        except (OSError, sqlite3.Error) as error:
            self.__exit__()
            raise ValueError(
                f"endpoint.cache is {path!r}, which cannot be used as a SQLite file ({error})."
            ) from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.db is not None:
            self.db.close()

    def read(self, keys) -> dict[str, Reply]:
        found = {}
        for key in keys if self.db is not None else ():
            row = self.db.execute("SELECT reply FROM replies WHERE request = ?", (key,)).fetchone()
            if row:
                text, first = json.loads(row[0])
                found[key] = Reply(text, tuple((token, value) for token, value in first))
        return found

    def write(self, key: str, reply: Reply) -> None:
        if self.db is not None:
            with self.lock:
                self.db.execute(
                    "INSERT OR REPLACE INTO replies VALUES (?, ?)",
                    (key, json.dumps([reply.text, reply.first])),
                )
