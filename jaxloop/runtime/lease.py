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
from jaxloop.runtime.object_store import Store

LEASE = "lease.json"
LEASE_SECONDS, RENEW_SECONDS = 60.0, 15.0


def acquire(store: Store) -> str:
    """Hold the address for this run, and return the token of the lease.

    Raises:
        ValueError: another run holds it, which is named.
    """
    data = object_store.get(store, LEASE)
    lease = {} if data is None else _lease(data)
    if lease.get("until", 0) > time.time() and not _is_dead(lease):
        raise ValueError(
            f"workdir={store.address}: is in use by {lease.get('holder')}; it ends there, or its "
            f"lease ends in {lease['until'] - time.time():.0f} s"
        )
    token = uuid.uuid4().hex
    renew(store, token, check=False)
    if _lease(object_store.get(store, LEASE) or b"{}").get("token") != token:
        raise ValueError(f"workdir={store.address}: another run took it in this moment")
    return token


def renew(store: Store, token: str, *, check: bool = True) -> None:
    """Hold the address for `LEASE_SECONDS` from now on.

    Raises:
        ValueError: with `check`, another run has taken it.
    """
    if check and _lease(object_store.get(store, LEASE) or b"{}").get("token") not in (None, token):
        raise ValueError(f"workdir={store.address}: another run has taken it over")
    lease = {
        "token": token,
        "holder": f"process {os.getpid()} on {socket.gethostname()}",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "until": time.time() + LEASE_SECONDS,
    }
    object_store.put(store, LEASE, json.dumps(lease).encode())


def release(store: Store, token: str) -> None:
    """Give the address free, if this run still holds it."""
    if token and _lease(object_store.get(store, LEASE) or b"{}").get("token") == token:
        object_store.delete(store, LEASE)


def _lease(data: bytes) -> dict[str, Any]:
    try:
        lease = json.loads(data)
    except ValueError:
        return {}
    return lease if isinstance(lease, dict) else {}


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
