"""Who re-embeds a memory, noted beside it: a second one at a time is refused, one that died is gone on with."""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

from memory_store.errors import CorruptFile, ReindexRunning
from memory_store.storage import Storage

__all__ = ["Claim", "claim", "delete_receipts", "leave", "refuse_beside_another", "release"]

_LOCK = "staging/reindex.json"
_SILENT_FOR_S = 900.0  # a re-index on another machine that has finished no part for so long is taken for dead
_NOBODY = 0  # the process of one that ended without a commit


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Who re-embeds, and with what; the id names the files. started: of the process, in the kernel's ticks; 0 where
    that is not known."""

    reindex_id: str
    fingerprint: str
    dtype: str
    owner: str
    pid: int
    started: int = 0

    @property
    def prefix(self) -> str:
        """What the names of its files begin with."""
        return f"reindex-{self.reindex_id}"


def claim(storage: Storage, fingerprint: str | None, dtype: str) -> Claim:
    """Take the one place for a re-index; go on with the work of one that ended early if it used the same encoder.

    fingerprint: None for an encoder without a name, whose work nobody goes on with. Raises ReindexRunning.
    """
    wanted = fingerprint or f"unnamed-{uuid4().hex[:12]}"
    reindex_id = uuid4().hex[:20]
    other = _read(storage)
    if other is not None:
        if _is_alive(storage, other):
            raise _running(storage, other)
        if (other.fingerprint, other.dtype) == (wanted, dtype):
            reindex_id = other.reindex_id
        else:
            delete_receipts(storage, other)
        storage.delete(_LOCK)
    ours = Claim(
        reindex_id=reindex_id,
        fingerprint=wanted,
        dtype=dtype,
        owner=socket.gethostname(),
        pid=os.getpid(),
        started=_started(os.getpid()),
    )
    try:
        storage.create_exclusive(_LOCK, _data(ours))
    except FileExistsError:
        refuse_beside_another(storage)
        raise ReindexRunning(f"{storage.shown} was re-indexed by another process just now; run again") from None
    return ours


def refuse_beside_another(storage: Storage) -> None:
    """Raise ReindexRunning while somebody re-embeds the memory."""
    other = _read(storage)
    if other is not None and _is_alive(storage, other):
        raise _running(storage, other)


def leave(storage: Storage, claimed: Claim) -> None:
    """End without a commit; the next one with the same encoder goes on with what is embedded."""
    storage.write_atomic(_LOCK, _data(replace(claimed, pid=_NOBODY)))


def release(storage: Storage) -> None:
    """End for good."""
    storage.delete(_LOCK)


def delete_receipts(storage: Storage, claimed: Claim) -> None:
    """What it noted of each part. The parts themselves may be named by a generation, and are left to `sweep`."""
    for path in storage.list("staging"):
        if path.startswith(f"staging/{claimed.prefix}"):
            storage.delete(path)


def _data(claimed: Claim) -> bytes:
    return json.dumps(asdict(claimed)).encode()


def _read(storage: Storage) -> Claim | None:
    if not storage.exists(_LOCK):
        return None
    try:
        return Claim(**json.loads(storage.read_bytes(_LOCK)))
    except FileNotFoundError:
        return None  # it ended since we looked
    except (ValueError, TypeError):
        raise CorruptFile(
            f"{storage.where(_LOCK)}: expected the note of a re-index, found another file; delete it if nobody "
            "re-indexes this memory"
        ) from None


def _is_alive(storage: Storage, claimed: Claim) -> bool:
    if claimed.pid == _NOBODY:
        return False
    if claimed.owner == socket.gethostname():
        try:
            os.kill(claimed.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        # A process that began at another time has the number of one that died, also in a container started again.
        return not claimed.started or _started(claimed.pid) in (0, claimed.started)
    newest_s = max((entry.modified_s or 0.0 for entry in storage.entries("staging")), default=0.0)
    return time.time() - newest_s < _SILENT_FOR_S


def _started(pid: int) -> int:
    """When a process began, in ticks since the machine did; 0 where /proc does not say."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text()
        return int(said.rpartition(")")[2].split()[19])  # its name, in brackets, may hold anything
    except (OSError, ValueError, IndexError):
        return 0


def _running(storage: Storage, claimed: Claim) -> ReindexRunning:
    return ReindexRunning(
        f"{storage.shown} is being embedded with {claimed.fingerprint} by process {claimed.pid} on {claimed.owner}; "
        f"wait for it, or stop it and run again (if it is gone, delete {storage.where(_LOCK)})"
    )
