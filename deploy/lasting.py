"""Where a Ray job may write: its working directory is a copy of what was submitted, and Ray throws it away."""

import os
from pathlib import Path

from memory_store.errors import ConfigError

__all__ = ["refuse_lost"]

_COPIES = "runtime_resources/working_dir_files"  # within Ray's session, on the node where a job or a worker runs


def refuse_lost(places: dict[str, str], *, folder: Path | None = None) -> None:
    """Raise ConfigError for a place to write to that would be thrown away with a Ray job's working directory.

    places: option -> path or URL. folder: where the process runs; by default its working directory. On a laptop a
    relative path is as good as any; a job of hours whose run is gone when it ends is no way to learn the difference.
    """
    here = folder or Path.cwd()
    if _COPIES not in here.as_posix():
        return
    for option, place in places.items():
        if "://" not in place and Path(os.path.normpath(here / place)).is_relative_to(here):
            raise ConfigError(
                f"expected an absolute path or a URL for {option} in a Ray job, found {place!r}, which would be thrown "
                "away with the job's working directory; name a place that every node sees, such as a shared folder or "
                "s3://bucket/..."
            )
