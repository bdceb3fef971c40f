"""The client of `hmn serve`, sync and async; loads neither torch nor ray."""

from deploy.client.aio import AsyncClient
from deploy.client.errors import InvalidRequest, Overloaded, ServiceError, ServiceUnavailable, Unauthorized
from deploy.client.results import (
    Answer,
    AskResult,
    Fact,
    FactRead,
    MemoryInfo,
    RefreshResult,
    SearchResult,
    ShardInfo,
    WriteResult,
)
from deploy.client.retry import RetryPolicy
from deploy.client.sync import Client

__all__ = [
    "Answer",
    "AskResult",
    "AsyncClient",
    "Client",
    "Fact",
    "FactRead",
    "InvalidRequest",
    "MemoryInfo",
    "Overloaded",
    "RefreshResult",
    "RetryPolicy",
    "SearchResult",
    "ServiceError",
    "ServiceUnavailable",
    "ShardInfo",
    "Unauthorized",
    "WriteResult",
]
