"""Leases: an open memory notes which generations it reads, so that no sweep takes them from under it."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from uuid import uuid4

from memory_store.errors import CorruptFile, HmnError
from memory_store.manifest import generations, read_manifest, this_author
from memory_store.storage import Storage

__all__ = ["LEASE_FOLDER", "LEASE_S", "SKEW_S", "Lease", "ReadLease", "leased", "leases"]

_log = logging.getLogger(__name__)

LEASE_FOLDER = "leases"
LEASE_S = 600.0  # a reader that died, or was stopped for so long, protects nothing any more
SKEW_S = 300.0  # by which clocks of two machines may differ: a lease counts for so much longer
RENEW_S = LEASE_S / 3


@dataclass(frozen=True, kw_only=True)
class Lease:
    """One reader. generations: that it reads; renewed_s: when it last said so, by its own clock."""

    path: str
    generations: tuple[int, ...]
    reader: str
    renewed_s: float
    modified_s: float | None

    def is_live(self, now_s: float) -> bool:
        """Whether it protects what it reads.

        The reader's clock and the storage's both count, but no time to come does: a clock that is ahead must not make a
        lease last. Where only such times are known, the lease stays: unknown is not expired.
        """
        known = (self.renewed_s, self.modified_s)
        past = [at_s for at_s in known if at_s is not None and at_s <= now_s + SKEW_S]
        return not past or now_s - max(past) < LEASE_S + SKEW_S


def leases(storage: Storage) -> tuple[Lease, ...]:
    """Every lease there is, live or not. Raises CorruptFile for one that cannot be read: it may protect anything."""
    found = []
    for entry in storage.entries(LEASE_FOLDER):
        try:
            content = json.loads(storage.read_bytes(entry.path))
            known = content["format_version"] == 1
            lease = Lease(
                path=entry.path,
                generations=tuple(int(generation) for generation in content["generations"]),
                reader=str(content["reader"]),
                renewed_s=float(content["renewed_s"]),
                modified_s=entry.modified_s,
            )
        except FileNotFoundError:
            continue  # closed since we looked
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise CorruptFile(
                f"{storage.where(entry.path)}: expected a reader's lease of format version 1, found none; delete the "
                "file if nobody reads this memory"
            )
        found.append(lease)
    return tuple(found)


class ReadLease:
    """The lease of one open memory: written before it reads, renewed in the background, deleted when it closes.

    A storage that cannot be written to is read all the same; a warning says once that nothing protects the reader.
    clock: seconds since the epoch. renew_s: time between two renewals; a test passes 0 and renews by hand.
    """

    def __init__(self, storage: Storage, *, clock: Callable[[], float] = time.time, renew_s: float = RENEW_S) -> None:
        self._storage = storage
        self._clock = clock
        self._renew_s = renew_s
        self._path = f"{LEASE_FOLDER}/{uuid4().hex}.json"
        self._held: tuple[int, ...] = ()
        self._noted: tuple[int, ...] | None = None
        self._write_lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._warned = False
        self._renewer: threading.Thread | None = None

    def hold(self, generations: Iterable[int]) -> None:
        """These and no others are read from now on; noted when this returns."""
        self._held = tuple(sorted(set(generations)))
        self._start()
        if self._held != self._noted:
            self.renew()

    def hold_soon(self, generations: Iterable[int]) -> None:
        """The same, noted in the background: for a generation that nobody can have superseded long ago."""
        self._held = tuple(sorted(set(generations)))
        self._start()
        self._wake.set()

    def renew(self) -> None:
        """Say that the reader lives."""
        with self._write_lock:
            if self._closed:
                return
            held = self._held
            noted = {
                "format_version": 1,
                "generations": held,
                "reader": f"{this_author()}, process {os.getpid()}",
                "renewed_s": self._clock(),
            }
            try:
                self._storage.write_atomic(self._path, json.dumps(noted).encode() + b"\n")
                self._noted = held
            except (HmnError, OSError, NotImplementedError) as error:
                if not self._warned:
                    self._warned = True
                    _log.warning(
                        "cannot note that this process reads %s, generation %s: %s. A sweep may take it away; tag the "
                        "generation to keep it",
                        self._storage.shown,
                        ", ".join(map(str, held)),
                        error,
                    )

    def close(self) -> None:
        """Nothing is read any more."""
        with self._write_lock:
            if self._closed:
                return
            self._closed = True
            self._wake.set()
            if self._noted is None:
                return
            try:
                self._storage.delete(self._path)
            except (HmnError, OSError, NotImplementedError) as error:  # it expires by itself
                _log.info("the lease %s stays until it expires: %s", self._storage.where(self._path), error)

    def _start(self) -> None:
        if self._renewer is None and self._renew_s > 0:
            self._renewer = threading.Thread(target=self._renew_on, name="hmn-lease", daemon=True)
            self._renewer.start()

    def _renew_on(self) -> None:
        while True:
            self._wake.wait(self._renew_s)
            self._wake.clear()
            if self._closed:  # what woke it
                return
            self.renew()


@contextmanager
def leased(storage: Storage, *, current_only: bool = False, generation: int | None = None) -> Iterator[Sequence[int]]:
    """Every generation there is, the current one or the one named, read until the end of the block.

    Raises MemoryNotFound, GenerationNotFound.
    """
    with closing(ReadLease(storage)) as lease:
        there: list[int] = []
        while not there:
            known = generations(storage)
            chosen = known[-1:] if current_only else known
            if generation is not None:
                chosen = [generation] if generation in known else []
            if not chosen:
                read_manifest(storage, generation)  # raises what says what was found instead
                continue  # committed since we looked
            lease.hold(chosen)
            now = set(generations(storage))  # a sweep may have run before it could see the lease
            there = [one for one in chosen if one in now]
        yield there
