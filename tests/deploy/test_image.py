"""The image of deploy/Dockerfile: its stages, what it holds, and what its build sees of a checkout."""

import fnmatch
import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PACKAGES = ("memory_store", "pipeline", "trainer", "deploy")


def instructions() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#")))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def stage(name: str) -> list[tuple[str, str]]:
    """The instructions of one stage, without its FROM."""
    starts = [at for at, (word, _) in enumerate(instructions()) if word == "FROM"] + [len(instructions())]
    for start, end in pairwise(starts):
        if instructions()[start][1].endswith(f" AS {name}"):
            return instructions()[start + 1 : end]
    raise AssertionError(f"no stage {name}")


def is_seen(path: str) -> bool:
    """Whether the build sees a file: the last line of the ignore file that names it, or a folder of it, decides."""
    seen = True
    for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            pattern = line.removeprefix("!").strip("/")
            # Docker's `**/` stands for any number of folders, and none; its `*` does not cross a `/`.
            regex = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
            if re.fullmatch(f"{regex}(/.*)?", path):
                seen = line.startswith("!")
    return seen


def copied() -> list[str]:
    sources = (rest.split()[:-1] for word, rest in instructions() if word == "COPY" and "--from" not in rest)
    return [source for several in sources for source in several]


def test_the_image_is_built_in_stages_and_runs_as_somebody_else_than_root() -> None:
    known = {"ARG", "CMD", "COPY", "ENV", "FROM", "LABEL", "RUN", "USER", "WORKDIR"}
    assert {word for word, _ in instructions()} <= known
    stages = [rest for word, rest in instructions() if word == "FROM"]
    assert [stage.split(" AS ")[1] for stage in stages] == ["build", "run"]
    assert all(re.fullmatch(r"python:3\.\d+-slim-\w+ AS \w+", stage) for stage in stages), "pinned, never `latest`"
    (user,) = (rest for word, rest in instructions() if word == "USER")
    assert int(user) > 0, "a number: Kubernetes cannot tell whether a name is root"
    assert f"--uid {user} " in DOCKERFILE
    manifest = yaml.safe_load((DEPLOY / "kuberay" / "cluster.yaml").read_text())
    pod = manifest["spec"]["headGroupSpec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == int(user)


def test_the_image_is_one_in_which_ray_up_can_run_its_commands() -> None:
    (environment,) = (rest for word, rest in instructions() if word == "ENV" and "PYTHONSAFEPATH" in rest)
    home = "/home/ray"
    assert f"HOME={home} " in environment, "`ray up` reads it in the image; else the token goes to /root"
    assert ("WORKDIR", home) in instructions()
    (packages,) = (rest for word, rest in instructions() if word == "RUN" and "apt-get" in rest)
    assert {"openssh-client", "rsync"} <= set(packages.split())
    # a login shell takes its PATH from /etc/profile, not from the image
    assert "'export PATH=/opt/hmn/bin:$PATH' > /etc/profile.d/" in packages


def test_the_image_says_what_it_is_and_the_wheel_in_it_holds_the_licence() -> None:
    (label,) = (rest for word, rest in stage("run") if word == "LABEL")
    said = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', label))
    project = PROJECT["project"]
    assert said["title"] == project["name"]
    assert said["version"] == project["version"]
    assert said["licenses"] == project["license"]
    assert said["description"] == project["description"].partition(":")[0]
    assert "LICENSE" in copied(), "setuptools puts it into the wheel, where it is"


def test_a_change_of_the_code_leaves_the_layer_of_what_hmn_needs_as_it_is() -> None:
    build = stage("build")
    installed = next(at for at, (word, rest) in enumerate(build) if word == "RUN" and "pip install" in rest)
    before = {source for word, rest in build[:installed] if word == "COPY" for source in rest.split()[:-1]}
    assert before == {"requirements.lock", "pyproject.toml"}
    assert "--constraint requirements.lock" in build[installed][1]
    assert build[installed][1].endswith("pip uninstall --yes hmn"), "else the code's own layer is that of an empty hmn"
    # nothing after it writes into /opt/hmn of this stage: the last stage copies it whole
    assert [rest for word, rest in build[installed + 1 :] if word == "RUN"] == [
        "pip wheel --no-deps --wheel-dir /wheels ."
    ]
    run = stage("run")
    needed = next(at for at, (word, rest) in enumerate(run) if word == "COPY" and "/opt/hmn" in rest)
    code = next(at for at, (word, rest) in enumerate(run) if word == "RUN" and "from=build,source=/wheels" in rest)
    user = next(at for at, (word, _) in enumerate(run) if word == "USER")
    assert run[code][1].endswith(" && hmn --version"), "it imports every command"
    assert needed < user < code, (
        "hmn belongs to the same user as what it needs: a cluster's set-up may install beside it"
    )


def test_a_volume_that_is_mounted_at_data_belongs_to_the_user_of_the_image() -> None:
    (made,) = (rest for word, rest in stage("run") if word == "RUN" and "useradd" in rest)
    assert made.index("useradd") < made.index("install --directory --owner=1000 --group=1000 /data")


def test_the_image_is_built_from_files_that_exist_and_that_the_build_sees() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert set(copied()) == {line[1:] for line in lines if line.startswith("!")}, "whole, see there"
    assert set(copied()) == {"requirements.lock", "pyproject.toml", "README.md", "LICENSE", *PACKAGES}
    data = [f"deploy/{pattern}" for pattern in PROJECT["tool"]["setuptools"]["package-data"]["deploy"]]
    for source in copied():
        place = REPOSITORY / source
        assert place.exists()
        for path in [place] if place.is_file() else place.rglob("*"):
            name = path.relative_to(REPOSITORY).as_posix()
            if place.is_file() or path.suffix == ".py" or any(fnmatch.fnmatch(name, pattern) for pattern in data):
                assert is_seen(name), name


def test_the_build_sees_nothing_that_is_not_installed() -> None:
    for path in (
        ".env", ".git/config", ".venv/bin/python", "runs/demo/run/report.html", "memories/m/manifest",
        "tests/deploy/test_image.py", "docs/clusters.md", "deploy/.env", "deploy/configs/.env", "deploy/cluster.yaml",
        "deploy/Dockerfile", "deploy/kuberay/serve.yaml", "trainer/__pycache__/loop.cpython-312.pyc",
        "deploy/serve/__pycache__/app.cpython-312.pyc",
    ):  # fmt: skip
        assert not is_seen(path), path
