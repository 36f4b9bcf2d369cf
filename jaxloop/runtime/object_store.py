"""Objects under an address such as s3://bucket/run, read and written by fsspec.

Nothing here renames or appends: an object is put whole, read whole, or deleted, and nothing relies
on a list of objects. Credentials come from the environment, as the library of the store reads them.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.log import LOGGER

T = TypeVar("T")

# The extra that brings the library of a kind of store.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
# Seconds before each further attempt at what failed for a reason that may pass.
WAITS = (0.2, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Store:
    """A place for objects.

    Attributes:
        address: what the user gave, such as "s3://bucket/run".
        files: the fsspec file system.
        root: the path of the address in it.
    """

    address: str
    files: Any
    root: str

    def path(self, name: str) -> str:
        """Return the path of an object in the file system."""
        return f"{self.root}/{name}"


def open_store(address: str) -> Store:
    """Open the store of an address; nothing is read or written yet.

    Raises:
        ValueError: fsspec knows no such kind of store, or its library is not installed.
    """
    kind, _, rest = address.partition("://")
    if not rest.strip("/"):
        raise ValueError(f"workdir={address}: names no place, such as {kind}://bucket/run")
    address = address.rstrip("/")
    try:
        # Listings of a store may be old, and we ask for none: no cache of them is wanted.
        files, root = fsspec.core.url_to_fs(address, use_listings_cache=False)
    except ImportError:
        extra = _EXTRAS.get(kind)
        package = f"'jaxloop-lm[{extra}]'" if extra else f"the library that fsspec has for {kind}"
        raise ValueError(
            f"workdir={address}: needs a library that is not installed; pip install {package}"
        ) from None
    except ValueError:
        raise ValueError(
            f"workdir={address}: {kind}:// is no kind of store; there are s3://, gs://, and "
            "others that fsspec knows"
        ) from None
    return Store(address, files, root.rstrip("/"))


def put(store: Store, name: str, data: bytes) -> None:
    """Write an object.

    Raises:
        ValueError: it may not be written, or its bucket does not exist.
        OSError: it could not be written in `len(WAITS) + 1` attempts.
    """

    def work() -> None:
        if "file" in _protocols(store):
            # fsspec would let readers see a part of it, which no object store does.
            path = Path(store.path(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data, durable=False)
        else:
            store.files.pipe_file(store.path(name), data)

    _attempt(store, f"writing {name}", work)


def get(store: Store, name: str) -> bytes | None:
    """Return the bytes of an object; None where there is none.

    Raises:
        ValueError: it may not be read.
        OSError: it could not be read in `len(WAITS) + 1` attempts.
    """

    def work() -> bytes | None:
        try:
            return store.files.cat_file(store.path(name))
        except FileNotFoundError:
            return None

    return _attempt(store, f"reading {name}", work)


def delete(store: Store, name: str) -> None:
    """Delete an object, if it is there; what cannot be deleted stays, with a warning."""

    def work() -> None:
        try:
            store.files.rm_file(store.path(name))
        except FileNotFoundError:
            return

    try:
        _attempt(store, f"deleting {name}", work)
    except (OSError, ValueError) as error:
        LOGGER.warning("%s; it stays there", error)


def delete_matching(store: Store, folder: str, pattern: str) -> None:
    """Delete the objects under `folder` whose names there match a regular expression.

    As far as the store lists them: what it does not list, or does not let us delete, stays.
    """
    try:
        found = store.files.find(store.path(folder))
    except Exception as error:  # each library of a store has errors of its own
        LOGGER.info("%s: %s is not listed (%s)", store.address, folder, _said(error))
        return
    for path in found:
        name = path.rpartition(f"/{folder}/")[2]
        if re.fullmatch(pattern, name):
            delete(store, f"{folder}/{name}")


def seconds_old(store: Store, name: str) -> float | None:
    """Return how long ago an object was written, by the clock of the store; None: unknown.

    An object is written, and deleted again, whose time is that of the store's clock now.

    Raises:
        ValueError: it may not be written.
        OSError: it could not be written.
    """
    probe = f"{name}.clock"
    put(store, probe, b"{}")
    try:
        now, written = (store.files.modified(store.path(each)) for each in (probe, name))
        return (now - written).total_seconds()
    except Exception as error:  # the object is gone, or the store tells no times
        LOGGER.info("%s: no time of %s (%s)", store.address, name, _said(error))
        return None
    finally:
        delete(store, probe)


def _protocols(store: Store) -> tuple[str, ...]:
    protocol = store.files.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _attempt(store: Store, what: str, work: Callable[[], T]) -> T:
    """Return `work()`, tried again while it fails for a reason that may pass."""
    for wait in (*WAITS, None):
        try:
            return work()
        except PermissionError as error:
            raise ValueError(
                f"workdir={store.address}: {what} is not allowed ({_said(error)}); check the "
                "credentials in the environment and the rights of the bucket"
            ) from None
        except FileNotFoundError as error:
            raise ValueError(
                f"workdir={store.address}: there is no such bucket ({_said(error)}); create it "
                "first"
            ) from None
        except Exception as error:  # each library of a store has errors of its own
            if "credential" in f"{type(error).__name__} {error}".lower():
                raise ValueError(
                    f"workdir={store.address}: there are no credentials for this store "
                    f"({_said(error)}); set them in the environment"
                ) from None
            if wait is None:
                raise OSError(
                    5, f"{what} failed {len(WAITS) + 1} times ({_said(error)})", store.address
                ) from error
            LOGGER.info("%s: %s failed (%s); once more", store.address, what, _said(error))
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
