"""Fixtures every test may use: a seeded generator, one small Ray cluster for the session, the shared real data."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# Set before any test imports ray: nothing is reported home, and a test's Ray never joins somebody else's cluster.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ.pop("RAY_ADDRESS", None)

REPOSITORY = Path(__file__).resolve().parent.parent

# Warnings are errors (pyproject.toml). These few are raised inside libraries, and nothing we write avoids them.
THIRD_PARTY_WARNINGS = [
    # ray.data sets its own deprecated options when it is first used
    "ignore::DeprecationWarning:ray.data.context",
    # ray and its workers leave pipes and sockets to the garbage collector when a cluster stops
    "ignore:.*(unclosed|subprocess [0-9]+ is still running).*:ResourceWarning",
]


# How long an example takes says more of what else the machine does than of the code.
hypothesis.settings.register_profile("no clock", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("no clock")


def pytest_configure(config: pytest.Config) -> None:
    for line in THIRD_PARTY_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator of its own for every test, with the same seed every time."""
    return np.random.default_rng(1605_07427)


@pytest.fixture(scope="session")
def ray_ends() -> Iterator[None]:
    """Whatever Ray this process has joined at the end of the session is left, and stopped if it was its own."""
    import ray

    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def ray_cluster(ray_ends: None) -> None:
    """One local Ray with two processors for all tests that ask for it; kept from module to module.

    A module with a cluster of its own takes its place; after that it is started anew.
    """
    import ray

    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=200 * 1024 * 1024,
            log_to_driver=False,
            logging_level="ERROR",
        )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; a test that needs it is skipped where it is not installed."""
    folder = Path(os.environ.get("HMN_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "simplequestions").is_dir():
        pytest.skip(f"no shared data at {folder}: set HMN_SHARED_DATA to the folder that holds simplequestions/")
    return folder
