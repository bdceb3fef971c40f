"""Every error a user can meet, one base class. Each message says what was expected, what was found, what to do."""

__all__ = [
    "CommitUnknown",
    "ConfigError",
    "CorruptFile",
    "DeviceUnavailable",
    "DimensionMismatch",
    "DuplicateFact",
    "EmptyInput",
    "GenerationConflict",
    "GenerationNotFound",
    "HmnError",
    "InputError",
    "InvalidVectors",
    "MemoryNotFound",
    "NoVectors",
    "RayUnavailable",
    "ReindexFailed",
    "ReindexRunning",
    "ShardUnavailable",
    "ShardsReplaced",
    "StorageFailed",
    "UnknownFact",
    "UnknownIndex",
    "VersionMismatch",
]


class HmnError(Exception):
    """Base of every error a user can cause or must act on; the command line prints it as one line.

    `exit_status` is what `hmn` exits with: 1 when the work failed, 2 when it was asked for wrongly.
    """

    exit_status = 1

    def __str__(self) -> str:  # KeyError would quote its message; all our errors read the same
        return str(self.args[0]) if self.args else type(self).__name__


class ConfigError(HmnError, ValueError):
    """A setting is unknown or out of range."""

    exit_status = 2


class UnknownIndex(ConfigError):
    """An index name or one of its options is not registered."""


class InputError(HmnError, ValueError):
    """Input data (a source file, a row under --strict) cannot be used; names file and line where there is one."""


class EmptyInput(InputError):
    """There is nothing to work on."""


class MemoryNotFound(HmnError, FileNotFoundError):
    """There is no memory at the URL."""


class GenerationNotFound(HmnError, LookupError):
    """The memory exists, but not in the generation asked for."""


class GenerationConflict(HmnError):
    """Another writer committed first; the precondition of a commit no longer holds."""


class CorruptFile(HmnError):
    """A part or manifest is missing, truncated, altered, or not of this format."""


class StorageFailed(HmnError, OSError):
    """The storage refused: disk full, permission denied, unreachable."""


class CommitUnknown(StorageFailed):
    """The storage failed while a generation was being published: it may be there or not, and its parts are kept."""


class NoVectors(HmnError):
    """The generation holds facts that were not embedded yet."""


class DeviceUnavailable(HmnError):
    """A search was to run on a GPU, and there is none, or none with room for it."""


class DimensionMismatch(HmnError, ValueError):
    """Vectors of another dimension than the memory's."""


class InvalidVectors(HmnError, ValueError):
    """Vectors hold NaN or infinity, or have the wrong shape or type."""


class DuplicateFact(HmnError, ValueError):
    """One fact id stands for two facts."""


class UnknownFact(HmnError, KeyError):
    """A fact id that the generation does not hold."""


class ShardUnavailable(HmnError):
    """A shard did not answer before the deadline."""


class ShardsReplaced(HmnError):
    """Another job put other shards in the place of these; whoever has the memory open goes on with those by itself."""


class RayUnavailable(HmnError):
    """Ray did not start here, or the cluster named by RAY_ADDRESS cannot be joined."""


class ReindexFailed(HmnError):
    """A re-index ended before its switch; what served before goes on serving."""


class ReindexRunning(HmnError):
    """Another re-index of the memory is under way."""


class VersionMismatch(HmnError):
    """A named memory was started by another version of the code or with other options."""
