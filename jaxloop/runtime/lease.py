"""The lease of an address in an object store: which run holds it, and until when.

An object that its holder writes anew every few seconds takes the place of a lock file: a holder
that is gone holds nothing for long.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from typing import Any

from jaxloop.runtime import object_store
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.object_store import Store

LEASE = "lease.json"
LEASE_SECONDS, RENEW_SECONDS, LOOK_SECONDS = 60.0, 15.0, 2.0


class TakenOver(ValueError):
    """Another run holds the address now."""


def acquire(store: Store) -> str:
    """Hold the address for this run, and return the token of the lease.

    Where another run has a lease, it is waited for: for a holder that renews it, until it does
    (`RENEW_SECONDS`); for one that is gone, until the lease ends, and `LEASE_SECONDS` at most,
    whatever the clock of the other machine said.

    Raises:
        ValueError: another run holds it, which is named.
    """
    found = _found(store)
    if _is_live(found):
        LOGGER.info("waiting whether %s, which has the address, lives", found.get("holder"))
        _wait(store, found)
    token = uuid.uuid4().hex
    renew(store, token, check=False)
    if _found(store).get("token") != token:
        raise ValueError(f"workdir={store.address}: another run took it in this moment")
    return token


def _wait(store: Store, found: Mapping[str, Any]) -> None:
    """Return when a lease has ended, or was not renewed for `LEASE_SECONDS`.

    Raises:
        ValueError: it was renewed.
    """
    end = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(LOOK_SECONDS, max(0.05, found["until"] - time.time())))
        now = _found(store)
        if not _is_live(now):
            return
        if now.get("until") != found["until"]:
            raise ValueError(
                f"workdir={store.address}: is in use by {now.get('holder')}; it ends there, or "
                f"its lease ends in {now['until'] - time.time():.0f} s"
            )


def renew(store: Store, token: str, *, check: bool = True) -> None:
    """Hold the address for `LEASE_SECONDS` from now on.

    Raises:
        TakenOver: with `check`, another run has taken it.
        ValueError, OSError: the store does not let us read or write.
    """
    if check and _found(store).get("token") not in (None, token):
        raise TakenOver(f"workdir={store.address}: another run has taken it over")
    lease = {
        "token": token,
        "holder": f"process {os.getpid()} on {socket.gethostname()}",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "until": time.time() + LEASE_SECONDS,
    }
    object_store.put(store, LEASE, json.dumps(lease).encode())


def release(store: Store, token: str) -> None:
    """Give the address free, if this run still holds it; with a warning where it cannot."""
    try:
        if token and _found(store).get("token") == token:
            object_store.delete(store, LEASE)
    except (OSError, ValueError) as error:
        LOGGER.warning("%s; the lease of the address ends in %d s", error, LEASE_SECONDS)


def _found(store: Store) -> dict[str, Any]:
    """What the lease object says; {} where there is none."""
    try:
        lease = json.loads(object_store.get(store, LEASE) or b"{}")
    except ValueError:
        return {}
    return lease if isinstance(lease, dict) else {}


def _is_live(lease: Mapping[str, Any]) -> bool:
    until = lease.get("until", 0)
    return isinstance(until, (int, float)) and until > time.time() and not _is_dead(lease)


def _is_dead(lease: Mapping[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is gone: nobody need wait for it."""
    if lease.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(lease["pid"]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, KeyError, ValueError):
        return False
    return False
