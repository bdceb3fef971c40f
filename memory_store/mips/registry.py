"""Every MIPS index by name, in one place; `hmn indexes` prints it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from memory_store.mips.base import MipsIndex, RegisteredIndex, ShardVectors, parse_index
from memory_store.mips.exact import build_exact

__all__ = ["INDEXES", "build_index"]

INDEXES: Final[Mapping[str, RegisteredIndex]] = MappingProxyType(
    {
        registered.name: registered
        for registered in [
            RegisteredIndex(
                name="exact",
                summary="every row is scanned; the answer is proven equal to float64 brute force",
                exact=True,
                options={
                    "scan": "precision of the scan: auto (measured, the default), int8, bfloat16, float32, float64"
                },
                build=build_exact,
            )
        ]
    }
)


def build_index(text: str, vectors: ShardVectors, threads: int = 1) -> MipsIndex:
    """Build the index that text names (`exact`, `ivf?nlist=1024`) over one shard's rows, or raise UnknownIndex."""
    spec = parse_index(text, INDEXES)
    return INDEXES[spec.name].build(vectors, spec.options, threads)
