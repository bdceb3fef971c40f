"""What a memory of a given size will need, computed before anything is started; pure."""

from dataclasses import dataclass
from typing import Literal

from deploy.console import size
from memory_store.errors import ConfigError
from memory_store.mips.base import parse_index
from memory_store.mips.exact import saved_bytes
from memory_store.mips.ivf import default_nlist
from memory_store.mips.registry import INDEXES
from memory_store.placement import place

# N facts, D dimension

__all__ = ["Machine", "Plan", "ShardNeed", "plan_memory"]

GIB = 2**30
VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
ID_BYTES = 3 * 8  # a shard keeps its ids in row order, its ids sorted, and the row of each sorted id
RESIDENT_GENERATIONS = 2  # while the next generation loads, the one being served stays
FACT_BYTES = 400  # one name and a few objects, features included; names in many scripts make it up to five times that
PART_ROWS = 65_536  # what ingest writes and embed encodes at a time
PROCESS_BYTES = GIB // 2  # Python with torch and Ray
TRAINER_BYTES = 5 * GIB // 4  # the same with batches, their gradients, and an allocator that keeps what it freed
TABLE_COPIES = 3  # of the feature tables: weights, a checkpoint that is taken, and the bytes it is written from
LOADED_COPIES = 2  # of the feature tables: while a model is read, its file and the model
FEATURE_BYTES = 1024  # of a fact's features, which the trainer remembers between refreshes,
REMEMBERED_FACTS = 4_000_000  # of so many facts
ROWS_WORTH_A_SHARD = 250_000  # below, what Ray adds to a call is more than another core takes off the scan


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to use: processors, and free bytes of memory and of disk."""

    cores: int
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True, kw_only=True)
class ShardNeed:
    """One shard, the largest: rows; mapped_bytes of vectors, which the system may drop and read again; resident_bytes
    of index and ids, which must fit; reload_bytes: resident while the next generation loads beside; gpu_bytes: on a
    GPU, while the next generation loads beside, 0 where the index uses none."""

    rows: int
    mapped_bytes: int
    index_bytes: int
    ids_bytes: int
    resident_bytes: int
    reload_bytes: int
    gpu_bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `hmn plan` prints. All sizes in bytes.

    memory_bytes: all shards, while a generation loads, vectors included. disk_bytes: two generations of vectors and
    the facts. opening_bytes: of the process that opens the memory first and so makes the index of all shards, vectors
    apart; reindex_bytes: of one that serves them and embeds everything anew. train_bytes: the trainer's own process.
    nlist: of an `ivf` index over one shard. problems: why it will not work here; empty if it will.
    """

    facts: int
    dim: int
    dtype: str
    index: str
    shards: int
    shards_advised: int
    threads_per_shard: int
    shard: ShardNeed
    memory_bytes: int
    facts_disk_bytes: int
    vectors_disk_bytes: int
    disk_bytes: int
    embed_worker_bytes: int
    opening_bytes: int
    reindex_bytes: int
    train_bytes: int
    nlist: int
    problems: tuple[str, ...]


def plan_memory(
    *,
    facts: int,
    dim: int,
    machine: Machine,
    shards: int | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    index: str = "exact",
    feature_bits: int = 19,
) -> Plan:
    """Plan a memory of `facts` vectors of `dim` values on a machine.

    Raises ConfigError for numbers that cannot be, UnknownIndex for an index that is not known.
    """
    for name, value in (("--facts", facts), ("--dim", dim), ("--shards", 1 if shards is None else shards)):
        if value < 1:
            raise ConfigError(f"expected {name} of at least 1, found {value}")
    if dtype not in VALUE_BYTES:
        raise ConfigError(f"expected --dtype {' or '.join(VALUE_BYTES)}, found {dtype!r}")
    advised = max(1, min(machine.cores, facts // ROWS_WORTH_A_SHARD))
    used = advised if shards is None else shards
    shard = _shard_need(facts, dim, dtype, used, index)
    vectors_disk_bytes = facts * (dim * VALUE_BYTES[dtype] + 8)
    facts_disk_bytes = facts * FACT_BYTES
    memory_bytes = used * (RESIDENT_GENERATIONS * shard.mapped_bytes + shard.reload_bytes + PROCESS_BYTES)
    disk_bytes = facts_disk_bytes + RESIDENT_GENERATIONS * vectors_disk_bytes
    table_bytes = 2**feature_bits * dim * 4
    train_bytes = TRAINER_BYTES + TABLE_COPIES * table_bytes + min(facts, REMEMBERED_FACTS) * FEATURE_BYTES
    embed_worker_bytes = (
        PROCESS_BYTES + LOADED_COPIES * table_bytes + min(facts, PART_ROWS) * (dim * 4 + 2 * FACT_BYTES)
    )
    spec = parse_index(index, INDEXES)
    built_bytes = used * (saved_bytes(spec, shard.rows, dim) if spec.name == "exact" else shard.index_bytes)
    return Plan(
        facts=facts,
        dim=dim,
        dtype=dtype,
        index=index,
        shards=used,
        shards_advised=advised,
        threads_per_shard=max(1, machine.cores // used),
        shard=shard,
        memory_bytes=memory_bytes,
        facts_disk_bytes=facts_disk_bytes,
        vectors_disk_bytes=vectors_disk_bytes,
        disk_bytes=disk_bytes,
        embed_worker_bytes=embed_worker_bytes,
        opening_bytes=PROCESS_BYTES + built_bytes,
        reindex_bytes=embed_worker_bytes + RESIDENT_GENERATIONS * built_bytes,
        train_bytes=train_bytes,
        nlist=default_nlist(shard.rows),
        problems=tuple(_problems(machine, used, shard, disk_bytes, train_bytes)),
    )


def _shard_need(facts: int, dim: int, dtype: str, shards: int, index: str) -> ShardNeed:
    rows = max(sum(piece.rows for piece in pieces) for pieces in place([facts], shards))
    spec = parse_index(index, INDEXES)
    index_bytes = INDEXES[spec.name].bytes_needed(spec, rows, dim)
    gpu_bytes_needed = INDEXES[spec.name].gpu_bytes_needed
    gpu_bytes = 0 if gpu_bytes_needed is None else gpu_bytes_needed(spec, rows, dim)
    ids_bytes = rows * ID_BYTES
    resident_bytes = index_bytes + ids_bytes
    return ShardNeed(
        rows=rows,
        mapped_bytes=rows * dim * VALUE_BYTES[dtype],
        index_bytes=index_bytes,
        ids_bytes=ids_bytes,
        resident_bytes=resident_bytes,
        reload_bytes=RESIDENT_GENERATIONS * resident_bytes,
        gpu_bytes=RESIDENT_GENERATIONS * gpu_bytes,
    )


def _problems(machine: Machine, shards: int, shard: ShardNeed, disk_bytes: int, train_bytes: int) -> list[str]:
    found = []
    must_fit_bytes = shards * (shard.reload_bytes + PROCESS_BYTES)
    if must_fit_bytes > machine.memory_bytes:
        found.append(
            f"index and ids need {size(must_fit_bytes)} of memory while a generation loads, found "
            f"{size(machine.memory_bytes)} free; spread the shards over more machines, or use a smaller --dim"
        )
    if train_bytes > machine.memory_bytes:
        found.append(
            f"training needs {size(train_bytes)} of memory, found {size(machine.memory_bytes)} free; "
            "use a smaller model.feature_bits or --dim"
        )
    if disk_bytes > machine.disk_bytes:
        found.append(
            f"facts and two generations of vectors need {size(disk_bytes)} of disk, found "
            f"{size(machine.disk_bytes)} free; use --dtype float16, or a --memory on another disk"
        )
    if shards > machine.cores:
        found.append(
            f"{shards} shards on {machine.cores} cores search one after the other; use at most one per core here"
        )
    return found
