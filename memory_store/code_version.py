"""The version of this package's code, as a named memory is stamped with it: what it says, and what it is."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import xxhash

__all__ = ["code_version", "digest"]


@cache
def code_version() -> str:
    """`<release>+<digest>`: the release that is installed, if one is, and a digest of the code that runs.

    The digest is what decides: a job brings its own working directory, whose code may differ from the one that is
    installed, and from that of an earlier job, while both call themselves the same release.
    """
    package = Path(__file__).parent
    files = {path.relative_to(package).as_posix(): path.read_bytes() for path in package.rglob("*.py")}
    return f"{_release()}+{digest(files)}"


def digest(files: dict[str, bytes]) -> str:
    """Of names and contents; 12 hex digits. Line ends do not count: they differ by how the code was fetched."""
    state = xxhash.xxh3_64()
    for name, content in sorted(files.items()):
        code = content.replace(b"\r\n", b"\n")
        state.update(f"{name}\0{len(code)}\0".encode())
        state.update(code)
    return state.hexdigest()[:12]


def _release() -> str:
    try:
        return version("hmn")
    except PackageNotFoundError:  # run from a folder that was shipped to the cluster, not installed
        return "uninstalled"
