"""Names of the files that hold built indexes; apart from them, so that upkeep need not load what searches need."""

__all__ = ["INDEX_FOLDER", "generation_of", "index_name"]

INDEX_FOLDER = "indexes"


def index_name(generation: int, key: str) -> str:
    """The path, within a memory, of an index of this generation."""
    return f"{INDEX_FOLDER}/{generation:08d}-{key}.safetensors"


def generation_of(path: str) -> int | None:
    """The generation that a file of the folder belongs to; None where the name is not ours."""
    digits = path.removeprefix(f"{INDEX_FOLDER}/").partition("-")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else None
