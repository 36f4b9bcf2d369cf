"""The connections between the processes of a run: a star around process 0, lines of JSON.

{"process": 2, "processes": 4}   who I am; answered by {"welcome": true} or {"refused": "why"}
{}                               I live
{"at": "3 NAME"}                 I wait at barrier 3
{"go": "3 NAME"}                 all are there
{"sent": 7}                      all my weights of meeting 7 are in the object store
{"stop": 15}                     a signal came; nobody waits for anybody any more
{"gone": "why"}                  leave
{"bye": true}                    I have ended in good order
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.signals import EXIT_GONE, Stopped

# A process is gone when it has been silent for this long, where the config says nothing else.
SILENCE_SECONDS = 60.0
SIGN_SECONDS = 1.0
_JOINED = "0 joined"
# A line of JSON is a few words; what sends more is no process of ours.
_LONGEST = 10_000


class Channel:
    """The connections of one process.

    Attributes:
        index, count: which process this is, of how many.
        silence: seconds without a sign of life after which another one is gone.
        stopped: the signal that one of the processes has got, or None.
        sent: in process 0, the last meeting whose weights each process has sent; see `mirror`.
        before_leaving: is called before the process leaves because another one is gone.
        end: ends the process with an exit code.
    """

    def __init__(self, index: int, count: int, others: Mapping[int, socket.socket]) -> None:
        self.index, self.count = index, count
        self.silence = SILENCE_SECONDS
        self.stopped: int | None = None
        self.sent: dict[int, int] = {}
        self.before_leaving: Callable[[], None] = lambda: None
        self.end: Callable[[int], None] = os._exit
        self._others = dict(others)
        self._heard = dict.fromkeys(others, time.monotonic())
        self._ended: set[int] = set()
        self._at: dict[str, set[int]] = {}
        self._open: set[str] = set()
        self._number = 0
        self._changed = threading.Condition(threading.RLock())
        self._sending = threading.Lock()
        self._leaving = threading.Lock()

    # ---- what the process does

    def start(self) -> None:
        """Begin to listen and to give signs of life."""
        for other, connection in self._others.items():
            self._thread(self._listen, other, connection)
        self._thread(self._live)

    def barrier(self, name: str) -> None:
        """Wait for all processes; see `cluster.barrier`."""
        self._number += 1
        key = f"{self._number} {name}"
        with self._changed:
            if self.stopped is None:
                self._arrive(key)
            while key not in self._open:
                if self.stopped is not None:
                    raise Stopped(self.stopped)
                missing = self._ended - self._at.get(key, set())
                if missing:
                    self._leave(f"process {min(missing)} of the run has ended before the others")
                self._changed.wait(SIGN_SECONDS)
            self._open.discard(key)

    def last_barrier(self, name: str, until: float) -> bool:
        """Wait for all processes after a signal; False where one is gone or the time is over."""
        key = f"last {name}"
        with self._changed:
            self._arrive(key)
            while key not in self._open:
                if self._ended - self._at.get(key, set()) or time.monotonic() > until:
                    return False
                self._changed.wait(SIGN_SECONDS / 4)
        return True

    def tell_stop(self, number: int) -> None:
        """Tell all processes that a signal came."""
        with self._changed:
            if self.stopped is None:
                self.stopped = number
                self._say_all({"stop": number})
                self._changed.notify_all()

    def tell_sent(self, meeting: int) -> None:
        """Tell process 0 that the object store has this process's weights of a meeting."""
        if self.index == 0:
            self.sent[0] = meeting
        else:
            self._say(0, {"sent": meeting})

    def wait_for_sent(self, meeting: int) -> None:
        """In process 0, wait until all others have sent their weights of a meeting, or have ended.

        Raises:
            Stopped: a process was told to stop.
        """
        with self._changed:
            while any(self.sent.get(k, 0) < meeting for k in self._others.keys() - self._ended):
                if self.stopped is not None:
                    raise Stopped(self.stopped)
                self._changed.wait(SIGN_SECONDS)

    def say_goodbye(self) -> None:
        """Tell the others that this process ends in good order."""
        self._say_all({"bye": True})

    def close(self) -> None:
        """End the connections."""
        for connection in self._others.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    # ---- what the others say

    def _listen(self, other: int, connection: socket.socket) -> None:
        with (
            contextlib.suppress(OSError, ValueError, TypeError),
            connection.makefile("rb") as lines,
        ):
            while line := lines.readline(_LONGEST):
                self._heard[other] = time.monotonic()
                self._take(other, json.loads(line))
        with self._changed:
            over = other in self._ended or self.stopped is not None
            self._ended.add(other)
            self._changed.notify_all()
        if not over:
            self._leave(f"process {other} of the run is gone: its connection has ended")

    def _take(self, other: int, said: dict[str, Any]) -> None:
        if "gone" in said:
            self._leave(str(said["gone"]))
        with self._changed:
            if "at" in said:
                self._note(other, str(said["at"]))
            elif "go" in said:
                self._open.add(str(said["go"]))
            elif "sent" in said:
                self.sent[other] = int(said["sent"])
            elif "stop" in said:
                self.tell_stop(int(said["stop"]))
            elif "bye" in said:
                self._ended.add(other)
            self._changed.notify_all()

    def _live(self) -> None:
        while True:
            time.sleep(SIGN_SECONDS)
            self._say_all({})
            now = time.monotonic()
            for other, heard in self._heard.items():
                if now - heard > self.silence and other not in self._ended:
                    self._leave(
                        f"process {other} of the run is gone: no sign of life for "
                        f"{self.silence:g} s"
                    )

    # ---- process 0 opens the barriers

    def _arrive(self, key: str) -> None:
        if self.index == 0:
            self._note(0, key)
        else:
            self._say(0, {"at": key})

    def _note(self, process: int, key: str) -> None:
        others = [k for k in self._at if k.split(" ", 1)[0] == key.split(" ", 1)[0] and k != key]
        if others and not key.startswith("last"):
            self._leave(f"process {process} of the run waits at {key!r}, another at {others[0]!r}")
        there = self._at.setdefault(key, set())
        there.add(process)
        # Once a signal has come nobody passes an ordinary barrier: all leave at the same one.
        if len(there) == self.count and (self.stopped is None or key.startswith("last")):
            del self._at[key]
            self._open.add(key)
            self._say_all({"go": key})

    # ---- saying and leaving

    def _say(self, other: int, what: Mapping[str, Any]) -> None:
        # A connection that has ended is noticed by the thread that listens to it.
        with contextlib.suppress(OSError), self._sending:
            self._others[other].sendall(_line(what))

    def _say_all(self, what: Mapping[str, Any]) -> None:
        for other in self._others:
            self._say(other, what)

    def _leave(self, why: str) -> None:
        """End this process, and with process 0 all of them."""
        with self._leaving:  # never released: one line is enough
            if self.index == 0:
                self._say_all({"gone": why})
            LOGGER.error("%s; this one leaves too, run the same command again to go on", why)
            self.before_leaving()
            self.end(EXIT_GONE)

    def _thread(self, work: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=work, args=arguments, name="processes", daemon=True).start()


# ---- joining


def accept_all(coordinator: str, port: int, count: int, timeout: float) -> Channel:
    """Return the channel of process 0 when all others have come.

    Raises:
        ValueError: it cannot listen, or others, which are named, do not come in time.
    """
    there: dict[int, socket.socket] = {}
    end = time.monotonic() + timeout
    with contextlib.ExitStack() as open_ones, _listener(coordinator, port) as listener:
        while len(there) < count - 1:
            listener.settimeout(max(0.01, end - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except OSError:
                missing = ", ".join(str(k) for k in range(1, count) if k not in there)
                raise ValueError(
                    f"coordinator={coordinator}: not all processes arrived within {timeout:g} s "
                    f"(missing: {missing})"
                ) from None
            open_ones.enter_context(connection)
            process = _welcome(connection, count)
            if process is not None:
                # A process that was started again takes the place of the one before.
                there[process] = connection
        for connection in there.values():
            with contextlib.suppress(OSError):
                connection.sendall(_line({"go": _JOINED}))
        open_ones.pop_all()
    return Channel(0, count, there)


def connect(
    coordinator: str, host: str, port: int, process: int, count: int, timeout: float
) -> Channel:
    """Return the channel of another process when all have come.

    Raises:
        ValueError: the coordinator does not answer, or others do not come in time.
    """
    end = time.monotonic() + timeout
    why, said = "no answer", {}
    while (left := end - time.monotonic()) > 0:
        try:
            with contextlib.ExitStack() as stack:
                connection = stack.enter_context(
                    socket.create_connection((host, port), timeout=max(0.1, min(5.0, left)))
                )
                connection.sendall(_line({"process": process, "processes": count}))
                said = _read(connection)
                if "refused" in said:
                    raise ValueError(f"coordinator={coordinator}: {said['refused']}")
                connection.settimeout(max(0.1, end - time.monotonic()))
                if said.get("welcome") and _read(connection).get("go") == _JOINED:
                    connection.settimeout(None)
                    stack.pop_all()
                    return Channel(process, count, {0: connection})
        except OSError as error:
            why = str(error)
        time.sleep(0.2)
    if said.get("welcome"):
        raise ValueError(
            f"coordinator={coordinator}: not all processes arrived within {timeout:g} s"
        )
    raise ValueError(f"coordinator={coordinator}: does not answer within {timeout:g} s ({why})")


def _listener(coordinator: str, port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise ValueError(
            f"coordinator={coordinator}: process 0 cannot listen there ({error.strerror or error})"
        ) from None


def _welcome(connection: socket.socket, count: int) -> int | None:
    """Answer who has come; None for one that is no other process of this run."""
    connection.settimeout(5.0)
    with contextlib.suppress(OSError):
        said = _read(connection)
        process = said.get("process")
        same = said.get("processes") == count
        if isinstance(process, int) and 0 < process < count and same:
            connection.sendall(_line({"welcome": True}))
            connection.settimeout(None)
            return process
        why = f"process 0 waits for processes 1 to {count - 1}, this is {process} of "
        connection.sendall(_line({"refused": f"{why}{said.get('processes')}"}))
    connection.close()
    return None


def _line(what: Mapping[str, Any]) -> bytes:
    return json.dumps(what).encode() + b"\n"


def _read(connection: socket.socket) -> dict[str, Any]:
    """One line, byte by byte: what follows it belongs to whoever reads next."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST:
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError("the connection has ended")
        line += byte
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
