"""The lease of an address in an object store: which run holds it, and until when.

An object that its holder writes anew every few seconds takes the place of a lock file: a holder
that is gone holds nothing for long. How old a lease is the store says, since the clocks of two
machines may differ by more than a lease lasts; the clock of this machine is asked only where a
store tells no times.
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
    (`RENEW_SECONDS`); for one that is gone, until the lease ends, and `LEASE_SECONDS` at most.

    Raises:
        ValueError: another run holds it, which is named.
    """
    found = _found(store)
    left = _seconds_left(store, found)
    if left > 0:
        LOGGER.info("waiting whether %s, which has the address, lives", found.get("holder"))
        _wait(store, found, left)
    token = uuid.uuid4().hex
    renew(store, token, check=False)
    if _found(store).get("token") != token:
        raise ValueError(f"workdir={store.address}: another run took it in this moment")
    return token


def _wait(store: Store, found: Mapping[str, Any], seconds: float) -> None:
    """Return when a lease was not renewed for so many seconds, or was given up.

    Raises:
        ValueError: it was renewed.
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(LOOK_SECONDS, left))
        now = _found(store)
        if not _may_live(now):
            return
        if now.get("until") != found["until"]:
            raise ValueError(
                f"workdir={store.address}: is in use by {now.get('holder')}; it ends there, or "
                f"its lease ends in {LEASE_SECONDS:.0f} s"
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


def _seconds_left(store: Store, lease: Mapping[str, Any]) -> float:
    """How long a lease still lasts if it is not renewed."""
    if not _may_live(lease):
        return 0.0
    old = object_store.seconds_old(store, LEASE)
    left = lease["until"] - time.time() if old is None else LEASE_SECONDS - old
    return float(min(left, LEASE_SECONDS))


def _may_live(lease: Mapping[str, Any]) -> bool:
    return isinstance(lease.get("until"), (int, float)) and not _is_dead(lease)


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
