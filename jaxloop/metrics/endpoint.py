"""Asks OpenAI-compatible endpoints for chat completions.

Concurrency is bounded, requests have timeouts and are retried, and a cache makes sure that nothing
is paid for twice. Only the standard library is used. The API key is read from the environment when
a request is made; it is kept in no object, no cache and no message.
"""

import contextlib
import dataclasses
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
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxloop.runtime.log import redact
from jaxloop.runtime.user_path import user_path

# Statuses after which trying again may help.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 524, 529})
_LONGEST_REPLY = 1 << 22
# Characters of an endpoint's own words that a message repeats.
_QUOTED = 160
# A request that only asks whether the endpoint answers waits no longer than this, in seconds.
_PROBE_TIMEOUT = 20.0
# The least that a number of an endpoint may be.
_LEAST: dict[str, float] = {
    "concurrency": 1,
    "timeout": 1e-3,
    "retries": 0,
    "longest_wait": 0,
    "temperature": 0,
    "max_tokens": 1,
    "top_logprobs": 0,
}


@dataclass(frozen=True)
class Endpoint:
    """An endpoint and the parameters of requests to it.

    Attributes:
        url: without "/chat/completions", such as "http://localhost:8000/v1".
        model: the served model's name.
        key: the environment variable that holds the key; no header is sent where it is unset.
        concurrency: requests in flight at once.
        timeout: seconds that one request may stay silent.
        retries: tries after the first that fail before the endpoint counts as unreachable.
        longest_wait: seconds between two tries, at most; a Retry-After beyond it counts as
            unreachable at once.
        temperature, max_tokens, top_logprobs: of the request; top_logprobs 0 asks for none.
        cache: SQLite file of replies by content; None keeps nothing.
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

    def __post_init__(self) -> None:
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
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise ValueError(
                    f"endpoint.{name} is {getattr(self, name)}, at least {least} is needed."
                )


class Reply(NamedTuple):
    """What the model wrote.

    first: the likeliest first tokens with their log-probabilities, where the endpoint tells them.
    """

    text: str
    first: tuple[tuple[str, float], ...] = ()


class Unreachable(RuntimeError):
    """The endpoint refused, or did not answer within its retries.

    What was answered before is in the cache.
    """


def complete(
    endpoint: Endpoint,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    *,
    draws: Sequence[int] | None = None,
) -> list[Reply]:
    """Return a reply to every conversation, in order; equal conversations are asked once.

    Replies of the cache cost nothing. Statuses that pass (429, 5xx, …), silence and broken
    connections are tried again after a wait that doubles, with jitter, and is never shorter than
    the Retry-After of the answer.

    Args:
        conversations: lists of {"role", "content"}.
        draws: a number for each: equal conversations of different numbers are asked each, and have
            entries of their own in the cache. The endpoint does not see it.

    Raises:
        Unreachable: retries are used up, or the endpoint refuses (a wrong key, an unknown model);
            no new request is made after that. It says how many of the replies are there.
    """
    bodies = [_body(endpoint, conversation) for conversation in conversations]
    marks = [""] * len(bodies) if draws is None else [f"\n{number}" for number in draws]
    keys = [_key(endpoint, body + mark) for body, mark in zip(bodies, marks, strict=True)]
    body_of = dict(zip(keys, bodies, strict=True))
    with _Cache(endpoint.cache) as cache:
        replies = cache.read(body_of)
        missing = {key: body for key, body in body_of.items() if key not in replies}
        try:
            replies |= _ask_all(endpoint, missing, cache)
        except Unreachable as error:
            there = len(cache.read(body_of))
            if not there:
                raise
            raise Unreachable(
                f"{str(error).rstrip('.')}; {there:,} of {len(body_of):,} replies are there and "
                "are not asked for again."
            ) from None
    return [replies[key] for key in keys]


def unanswered(endpoint: Endpoint, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> int:
    """Return how many different conversations the endpoint's cache has no reply to."""
    with _Cache(endpoint.cache) as cache:
        keys = {_key(endpoint, _body(endpoint, conversation)) for conversation in conversations}
        return len(keys) - len(cache.read(keys))


def probe(endpoint: Endpoint, conversation: Sequence[Mapping[str, Any]]) -> Reply:
    """Ask once more or less at once, outside the cache, and return the reply.

    Raises:
        Unreachable: as `complete`, after two tries and at most 20 seconds of silence each.
    """
    once = dataclasses.replace(
        endpoint,
        retries=1,
        timeout=min(endpoint.timeout, _PROBE_TIMEOUT),
        longest_wait=min(endpoint.longest_wait, 1.0),
        cache=None,
    )
    (reply,) = complete(once, [conversation])
    return reply


def _key(endpoint: Endpoint, body: str) -> str:
    return hashlib.sha256(f"{endpoint.url}\n{body}".encode()).hexdigest()


def _ask_all(endpoint: Endpoint, bodies: Mapping[str, str], cache: "_Cache") -> dict[str, Reply]:
    """Replies to {key: body}, `concurrency` at a time; each is in the cache as it arrives."""
    stop = threading.Event()

    def ask(key: str) -> Reply:
        try:
            reply = _request(endpoint, bodies[key], stop)
            cache.write(key, reply)
        except BaseException:
            stop.set()  # before this thread takes the next request
            raise
        return reply

    with ThreadPoolExecutor(max(1, min(endpoint.concurrency, len(bodies)))) as pool:
        futures = {key: pool.submit(ask, key) for key in bodies}
        try:
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        # Ctrl-C and a failed request alike: what waits is dropped, what is asked already is kept.
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    if failure := _first_cause(futures.values()):
        raise failure
    return {key: future.result() for key, future in futures.items()}


def _first_cause(futures: Iterable[Future[Reply]]) -> BaseException | None:
    """The first failure other than `_Stopped`, which follows from it."""
    failures = []
    for future in futures:
        if not future.cancelled() and (failure := future.exception()):
            failures.append(failure)
    causes = [failure for failure in failures if not isinstance(failure, _Stopped)]
    return next(iter([*causes, *failures]), None)


def _body(endpoint: Endpoint, conversation: Sequence[Mapping[str, Any]]) -> str:
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": list(conversation),
        "temperature": endpoint.temperature,
        "max_tokens": endpoint.max_tokens,
    }
    if endpoint.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": endpoint.top_logprobs}
    return json.dumps(body, sort_keys=True)  # ASCII, so lone surrogates pass as escapes


class _Stopped(Unreachable):
    """Another request has found the endpoint unreachable."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: following one would hand the key to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _request(endpoint: Endpoint, body: str, stop: threading.Event) -> Reply:
    where = f"{endpoint.model} at {endpoint.url}"
    failure = _Failure("")
    for attempt in range(endpoint.retries + 1):
        if stop.is_set():
            raise _Stopped(f"{where} is not asked any more.")
        answer = _try(endpoint, body, where)
        if isinstance(answer, Reply):
            return answer
        failure = answer
        if failure.retry_after > endpoint.longest_wait:
            raise Unreachable(
                f"{where} gives {failure.problem} and asks to be left alone for "
                f"{failure.retry_after:,.0f} s."
            )
        if attempt < endpoint.retries:
            backoff = min(endpoint.longest_wait, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)
            stop.wait(failure.retry_after + backoff)
    raise Unreachable(
        f"{where} did not answer in {endpoint.retries + 1} tries; the last one gave "
        f"{failure.problem}."
    )


class _Failure(NamedTuple):
    """What went wrong, and the seconds that the endpoint asks to be left alone."""

    problem: str
    retry_after: float = 0.0


def _try(endpoint: Endpoint, body: str, where: str) -> Reply | _Failure:
    """One request. Raises `Unreachable` where trying again cannot help."""
    address = endpoint.url.rstrip("/") + "/chat/completions"
    headers = {"Content-Type": "application/json", "User-Agent": "jaxloop"}
    secret = os.environ.get(endpoint.key, "").strip()
    if secret:
        headers["Authorization"] = f"Bearer {secret}"
    request = urllib.request.Request(address, body.encode(), headers)
    try:
        with _OPENER.open(request, timeout=endpoint.timeout) as answer:
            return _parse(answer.read(_LONGEST_REPLY))
    except urllib.error.HTTPError as error:
        with contextlib.closing(error):
            if error.code not in _PASSING:
                raise Unreachable(_refusal(error, endpoint, where, secret)) from None
            wait = _retry_after(error.headers.get("Retry-After"))
            return _Failure(f"status {error.code}", wait)
    except ValueError as error:
        return _Failure(f"a reply that is no chat completion ({error})")
    except TimeoutError:
        return _Failure(f"silence for {endpoint.timeout:g} s")
    # No connection, or a broken one; URLErrors are OSErrors.
    except OSError as error:
        if isinstance(getattr(error, "reason", None), TimeoutError):
            return _Failure(f"silence for {endpoint.timeout:g} s")
        return _Failure(str(getattr(error, "reason", error)) or type(error).__name__)
    except Exception as error:  # a broken HTTP message
        return _Failure(type(error).__name__)


def _refusal(error: urllib.error.HTTPError, endpoint: Endpoint, where: str, secret: str) -> str:
    """Why an endpoint refuses, with its own words but for the key."""
    hint = ""
    if error.code in (401, 403):
        hint = f"; the key is read from the environment variable {endpoint.key}"
    try:
        said = error.read(_LONGEST_REPLY).decode("utf-8", "replace")
        found = json.loads(said)
        found = found.get("error", found.get("detail", found))
        said = str(found["message"] if isinstance(found, dict) and "message" in found else found)
    except (OSError, ValueError, AttributeError):
        said = ""
    said = redact(" ".join(said.replace(secret or "\0", "").split()))
    quoted = f" ({said[:_QUOTED].rstrip('. ')})" if said else ""
    return f"{where} refuses with status {error.code}{quoted}{hint}."


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
        tokens = (choice.get("logprobs") or {}).get("content") or [{}]
        likeliest = tokens[0].get("top_logprobs") or ()
        first = tuple((str(t["token"]), float(t["logprob"])) for t in likeliest)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from None
    if not isinstance(text, str):
        raise ValueError(f"content is {type(text).__name__}")
    return Reply(text, first)


class _Cache:
    """An SQLite file {hash of a request: reply}; a reply is stored durably once `write` returns."""

    def __init__(self, path: str | None) -> None:
        self.lock = threading.Lock()
        self.db: sqlite3.Connection | None = None
        if path is None:
            return
        file = user_path(path)
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

    def __enter__(self) -> "_Cache":
        return self

    def __exit__(self, *_: object) -> None:
        if self.db is not None:
            self.db.close()

    def read(self, keys: Iterable[str]) -> dict[str, Reply]:
        replies: dict[str, Reply] = {}
        if self.db is None:
            return replies
        for key in keys:
            row = self.db.execute("SELECT reply FROM replies WHERE request = ?", (key,)).fetchone()
            if row:
                text, first = json.loads(row[0])
                replies[key] = Reply(text, tuple((token, value) for token, value in first))
        return replies

    def write(self, key: str, reply: Reply) -> None:
        if self.db is not None:
            with self.lock:
                self.db.execute(
                    "INSERT OR REPLACE INTO replies VALUES (?, ?)",
                    (key, json.dumps([reply.text, reply.first])),
                )
