"""[ray] A Ray cluster of a head and one more node on this machine, whose processes can be killed and come back."""

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import psutil

__all__ = ["Nodes"]

_NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
_SYSTEM = {
    # A node whose processes were killed is missed after a few seconds instead of half a minute.
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_failure_threshold": 5,
    "worker_niceness": 0,  # else shards would hardly start beside the processes that load them
}
# What a cluster starts besides its nodes, and the mix does not need.
_BARE = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}


class Nodes:
    """The head also holds what a cluster knows (the GCS): without it, all that runs on Ray is gone."""

    def __init__(self) -> None:
        self._cluster: Any = None

    def restore(self) -> None:
        """Start the cluster, or the node of it that is missing."""
        from ray.cluster_utils import Cluster

        # Ray then starts each node's agent without its dashboard, in a fraction of the time.
        with patch("ray._private.utils.get_dashboard_dependency_error", return_value=ImportError("not asked for")):
            if self._cluster is None:
                head = {**_NODE, **_BARE, "_system_config": _SYSTEM}
                self._cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
            if not self._cluster.worker_nodes:
                self._cluster.add_node(**_NODE)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def node_has_shards(self) -> bool:
        """Whether the node that is not the head runs any."""
        return self._cluster is not None and bool(_shards(self._cluster.worker_nodes))

    def kill_shard(self, which: int) -> bool:
        """kill -9 one of the shards that run; False if there are none right now."""
        shards = _shards(self._cluster.list_all_nodes())
        if shards:
            with suppress(ProcessLookupError):
                os.kill(shards[which % len(shards)], signal.SIGKILL)
        return bool(shards)

    def kill_node(self) -> None:
        """kill -9 all processes of the node that is not the head."""
        (node,) = self._cluster.worker_nodes
        self._kill(node)

    def kill_all(self) -> None:
        """kill -9 the head, and all others with it: they would look for it for a minute before they give up."""
        if self._cluster is not None:
            for node in [*self._cluster.worker_nodes, self._cluster.head_node]:
                self._kill(node)
            self._cluster = None

    def _kill(self, node: Any) -> None:
        workers = _workers(node)
        self._cluster.remove_node(node, allow_graceful=False)
        for worker in workers:
            with suppress(psutil.NoSuchProcess):  # it ended with its raylet
                worker.kill()


def _shards(nodes: Iterable[Any]) -> list[int]:
    """The process ids of all shards that these nodes run."""
    found = []
    for worker in (worker for node in nodes for worker in _workers(node)):
        with suppress(psutil.Error):  # it ended since it was listed
            if "ShardActor" in "".join(worker.cmdline()):
                found.append(worker.pid)
    return sorted(found)


def _workers(node: Any) -> list[psutil.Process]:
    """What the raylet of a node has started: shards, other workers, agents."""
    found = []
    for raylet in node.all_processes.get("raylet", ()):
        with suppress(psutil.NoSuchProcess):
            found += psutil.Process(raylet.process.pid).children(recursive=True)
    return found
