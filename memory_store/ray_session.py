"""[ray] Joins the Ray cluster that the environment names, or starts a small local one; quietly, once per process."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from memory_store.errors import RayUnavailable
from memory_store.redaction import redact

__all__ = ["ensure_ray"]

ANSWER_S = 10.0  # Ray itself tries an address where nobody listens for minutes
LOCAL_OBJECT_STORE_BYTES = 512 * 2**20  # arrays between actors are small; the memory itself is mapped from files


def ensure_ray(num_cpus: int | None = None, *, join: str | None = None) -> None:
    """Make Ray usable in this process; does nothing where it already is.

    With RAY_ADDRESS set (as under `ray job submit`) the process joins that cluster and `num_cpus` is ignored.
    Otherwise a local Ray without dashboard starts and ends with this process. join: where the cluster is that must be
    joined if RAY_ADDRESS is not set; "auto" is the one that runs on this machine. Raises RayUnavailable.
    """
    if ray.is_initialized():
        return
    # Without this Ray warns, in every process, of a change to come in how it treats hidden accelerators.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS") or join
    try:
        if address:
            _reach(address)
        with _sigterm_stays_ours():
            if address:
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
            else:
                ray.init(
                    address="local",  # never a cluster that somebody else left running on this machine
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                )
    except Exception as error:  # Ray says with plain exceptions of many classes that it cannot start
        if os.environ.get("RAY_ADDRESS"):
            what = f"to join the Ray cluster at RAY_ADDRESS={address}"
        elif join:
            what = f"a Ray cluster at {join!r}; set RAY_ADDRESS, or start one with `ray start --head`"
        else:
            what = "a local Ray to start"
        said = redact(" ".join(str(error).split()))[:200]
        # Where somebody listens but does not let us in, Ray names the address alone; its reason is in C++ logs at best.
        let_in = not (isinstance(error, ConnectionError) and error.__cause__ is not None)
        advice = "" if let_in else f"{_token_advice(os.environ)}; "
        raise RayUnavailable(f"expected {what}, found: {said}; {advice}`hmn doctor` says what is missing") from error


@contextmanager
def _sigterm_stays_ours() -> Iterator[None]:
    """What SIGTERM does in this process stays what it was: Ray would print a stack trace and exit.

    Where the program has not said what it does, Ray's way of ending with all its processes stays, without the trace.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:  # Ray takes it first of all, so also where it then cannot be joined
        if threading.current_thread() is threading.main_thread():  # others may not say it, and Ray has not
            kept = before if before not in (signal.SIG_DFL, None) else signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, kept)


def _token_advice(environment: Mapping[str, str]) -> str:
    """What to look at if a cluster that is there does not let us in."""
    mode = environment.get("RAY_AUTH_MODE")
    if mode == "token":
        return "a cluster refuses all tokens but its own: is this one the token of its head?"
    return f"if the cluster asks for a token, set RAY_AUTH_MODE=token (it is {mode or 'not set'}) and give it the token"


def _reach(address: str) -> None:
    """Raise OSError where nobody listens at host:port; other forms of address ("auto", "ray://") are judged by Ray."""
    host, colon, port = address.rpartition(":")
    if colon and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
