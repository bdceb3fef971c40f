"""What /metrics answers: latencies per stage, batches, the generation and its age, shard restarts, coverage."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from deploy.serve.engine import Status

__all__ = ["CONTENT_TYPE", "ServiceMetrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServiceMetrics:
    """The numbers of one replica, in a registry of its own.

    among_others: other replicas answer at the same address. Each series then says whose it is: without that, Prometheus
    would take the numbers of one for those of another that has started anew.
    """

    def __init__(self, *, among_others: bool = False) -> None:
        registry = CollectorRegistry()
        self._shown = _OfReplica(registry, uuid4().hex[:8]) if among_others else registry
        self._requests = Counter(
            "hmn_http_requests",
            "Requests by route, method and status.",
            ("route", "method", "status"),
            registry=registry,
        )
        self._request_seconds = Histogram(
            "hmn_http_request_seconds",
            "Time of a request inside the service.",
            ("route",),
            registry=registry,
            buckets=SECONDS,
        )
        self._stage_seconds = Histogram(
            "hmn_stage_seconds",
            "Time per stage: queue (waiting for the batch before), encode, search and fetch (per batch).",
            ("stage",),
            registry=registry,
            buckets=SECONDS,
        )
        self._batch = Histogram(
            "hmn_batch_items", "Questions or vectors in one search.", registry=registry, buckets=SIZES
        )
        self._coverage = Gauge("hmn_coverage", "Share of the facts that the last search looked at.", registry=registry)
        self._least_coverage = Gauge("hmn_coverage_least", "Smallest coverage of any search so far.", registry=registry)
        self._queued = Gauge("hmn_queued_items", "Questions and vectors that wait for a batch.", registry=registry)
        self._ready = Gauge("hmn_ready", "1 while questions are answered, else 0.", registry=registry)
        self._generation = Gauge("hmn_generation", "The generation that answers.", registry=registry)
        self._age = Gauge("hmn_generation_age_seconds", "Time since that generation was committed.", registry=registry)
        self._facts = Gauge("hmn_facts", "Facts in the generation that answers.", registry=registry)
        self._restarts = Gauge(
            "hmn_shard_restarts", "How often a shard was seen to come back.", ("shard",), registry=registry
        )
        self._rollouts = Gauge(
            "hmn_rollouts", "Generations and models rolled out since the start.", ("kind",), registry=registry
        )
        self._rollout_failures = Gauge("hmn_rollout_failures", "Rollouts that failed.", registry=registry)
        self._coverage.set(1.0)
        self._least_coverage.set(1.0)
        self._least = 1.0
        for stage in ("queue", "encode", "search", "fetch"):
            self._stage_seconds.labels(stage)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request has been answered. route: as declared, so that strange addresses make no new series."""
        self._requests.labels(route, method, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def queued_for(self, seconds: float) -> None:
        self._stage_seconds.labels("queue").observe(seconds)

    def batch(self, items: int, stages_s: Mapping[str, float], coverage: float) -> None:
        """One search has been made for so many items."""
        self._batch.observe(items)
        for stage, seconds in stages_s.items():
            self._stage_seconds.labels(stage).observe(seconds)
        self._coverage.set(coverage)
        self._least = min(self._least, coverage)
        self._least_coverage.set(self._least)

    def text(self, status: Status, queued: int) -> bytes:
        """All of it, in Prometheus' text format."""
        self._queued.set(queued)
        self._ready.set(status.ready)
        self._generation.set(status.generation)
        self._age.set(generation_age_s(status.created_at, time.time()))
        self._facts.set(status.facts)
        for shard in status.shards:
            self._restarts.labels(str(shard.shard)).set(shard.restarts)
        self._rollouts.labels("generation").set(status.generations_rolled_out)
        self._rollouts.labels("model").set(status.models_rolled_out)
        self._rollout_failures.set(status.failed_rollouts)
        return generate_latest(self._shown)


@dataclass(frozen=True)
class _OfReplica(Collector):
    """Everything of a registry, with one label more."""

    registry: CollectorRegistry
    replica: str

    def collect(self) -> Iterator[Metric]:
        for metric in self.registry.collect():
            metric.samples = [one._replace(labels={**one.labels, "replica": self.replica}) for one in metric.samples]
            yield metric


def generation_age_s(created_at: str, now_s: float) -> float:
    """Seconds since an ISO time; 0 where it is not known."""
    try:
        return max(0.0, now_s - datetime.fromisoformat(created_at).timestamp())
    except ValueError:
        return 0.0
