"""What a service is told when it starts: what to serve, whom to let in, and how much of anything to take."""

import hashlib
import hmac
from dataclasses import dataclass, field

from memory_store.errors import ConfigError

__all__ = ["SHARED_PREFIX", "Access", "Limits", "ServeSettings", "Source"]

LEAST_TOKEN_CHARS = 16
SHARED_PREFIX = "hmn-serve-"  # of the names by which the replicas of a service share its shards


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is served. memory, generation: instead of those that the run's checkpoint names.

    backend, shards, shard_replicas: instead of those the run was trained with. name: the shards are shared by all
    replicas under it. partial: answer without the rows of a shard that is away, and say so in `coverage`. deadline_s:
    how long a search may wait for a shard. follows_checkpoint: the memory is the one that the checkpoints of the run
    speak of, also where RUN comes to name another run with another memory. spoken_of: how the checkpoint that was there
    at the start named `memory`, and from which folder.
    A generation that is named stays: nothing newer is rolled out.
    """

    run_dir: str
    memory: str | None = field(default=None, repr=False)  # a URL may hold credentials
    generation: int | None = None
    backend: str | None = None
    shards: int | None = None
    shard_replicas: int | None = None
    name: str | None = None
    partial: bool = False
    follows_checkpoint: bool = True
    spoken_of: tuple[str, str] | None = field(default=None, repr=False)
    deadline_s: float = 10.0

    def __post_init__(self) -> None:
        _require(self.backend in (None, "local", "ray"), f"expected backend 'local' or 'ray', found {self.backend!r}")
        _require(self.shards is None or self.shards >= 1, f"expected shards >= 1, found {self.shards}")
        copies = self.shard_replicas
        _require(copies is None or copies >= 1, f"expected shard_replicas >= 1, found {copies}")
        _require(self.deadline_s > 0, f"expected deadline_s > 0, found {self.deadline_s}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one request, one batch and the queue may hold.

    items: questions or vectors in one request. batch: of them in one search. waiting: in the queue; more is answered
    with 429. deadline_s: seconds until a request that waits is given up. body_s: until a body must have arrived.
    facts: written by one request. objects: of one such fact, and names of its subject. writing: requests that write or
    wait to; more is answered with 429.
    """

    body_bytes: int = 1_048_576
    text_chars: int = 1_000
    items: int = 64
    k: int = 100
    batch: int = 128
    waiting: int = 1_024
    deadline_s: float = 30.0
    body_s: float = 10.0
    facts: int = 1_000
    objects: int = 1_000
    writing: int = 16

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _require(value > 0, f"expected {name} > 0, found {value}")
        _require(self.items <= self.batch, f"expected batch >= {self.items} (items of one request), found {self.batch}")
        _require(self.batch <= self.waiting, f"expected waiting >= batch ({self.batch}), found {self.waiting}")


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may do what. Keeps the SHA-256 of the token, never the token itself.

    reads: whether reading needs the token too. Without a token nobody writes, and everybody reads.
    """

    digest: bytes | None = field(default=None, repr=False)
    reads: bool = False

    @classmethod
    def from_token(cls, token: str | None, *, reads: bool = False) -> "Access":
        """token: None or empty for none. Raises ConfigError for one that is easily guessed."""
        if not token:
            _require(not reads, "expected a token in HMN_TOKEN, without which nobody could read; found none")
            return cls()
        _require(
            len(token) >= LEAST_TOKEN_CHARS,
            f"expected a token of {LEAST_TOKEN_CHARS} characters or more in HMN_TOKEN, found {len(token)}; "
            "make one with: openssl rand -hex 32",
        )
        return cls(digest=_digest(token.encode()), reads=reads)

    def admits(self, authorization: bytes | None) -> bool:
        """Whether an Authorization header carries the token; takes as long for a wrong one as for the right one."""
        scheme, _, token = (authorization or b"").strip().partition(b" ")
        same = hmac.compare_digest(_digest(token.strip()), self.digest or bytes(hashlib.sha256().digest_size))
        return same and self.digest is not None and scheme.lower() == b"bearer"


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """poll_s: how often a newer generation or checkpoint is looked for; 0: only when POST /v1/refresh asks."""

    source: Source
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    poll_s: float = 5.0

    def __post_init__(self) -> None:
        _require(self.poll_s >= 0, f"expected poll_s >= 0, found {self.poll_s}")


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ConfigError(otherwise)
