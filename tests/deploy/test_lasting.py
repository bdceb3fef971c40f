"""A Ray job does not write where what it writes is thrown away with it."""

from pathlib import Path

import pytest

from deploy.lasting import refuse_lost
from memory_store.errors import ConfigError

COPY = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0123456789abcdef")


@pytest.mark.parametrize("place", ["runs/geonames", ".", "./memory", f"{COPY}/runs/geonames"])
def test_a_place_within_the_working_directory_of_a_job_is_refused(place: str) -> None:
    with pytest.raises(ConfigError, match=r"absolute path or a URL for --run in a Ray job, found .* thrown away"):
        refuse_lost({"--memory": "s3://bucket/memory", "--run": place}, folder=COPY)


@pytest.mark.parametrize("place", ["/data/runs/geonames", "s3://bucket/memory", "../../../../kept"])
def test_a_place_elsewhere_is_taken(place: str) -> None:
    refuse_lost({"--run": place}, folder=COPY)


def test_outside_of_a_job_a_relative_path_is_as_good_as_any(tmp_path: Path) -> None:
    refuse_lost({"--run": "runs/geonames"}, folder=tmp_path)
