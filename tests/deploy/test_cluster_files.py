"""Launcher files and Kubernetes manifests: held against their schemas, and against one another."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy.cli import hmn
from memory_store.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
LAUNCHERS = sorted(DEPLOY.glob("cluster*.yaml"))
MANIFESTS = sorted((DEPLOY / "kuberay").glob("*.yaml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def shell_lines(config: dict[str, Any]) -> list[str]:
    return [line for key, lines in config.items() if key.endswith("_commands") for line in lines]


def test_there_is_a_launcher_file_for_every_provider_and_a_manifest_of_every_kind() -> None:
    assert sorted(read(path)["provider"]["type"] for path in LAUNCHERS) == ["aws", "gcp", "local"]
    assert sorted(read(path)["kind"] for path in MANIFESTS) == ["RayCluster", "RayJob", "RayService"]


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_a_launcher_file_is_what_ray_up_takes(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read(path))  # fills in the provider's defaults, as `ray up` does before it looks
    validate_config(config)
    for start in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert all("RAY_AUTH_MODE=token ray st" in line for line in config[start]), "a cluster without a token is open"
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1], "jobs are submitted there"
    assert "~/.ray/auth_token" in config["file_mounts"]


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_a_misspelt_key_of_a_launcher_file_is_refused(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuets"):
        validate_config(prepare_config(read(path) | {"idle_timeout_minuets": 5}))


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_every_command_of_a_launcher_file_is_shell(path: Path) -> None:
    for line in shell_lines(read(path)):
        assert shlex.split(line), line


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_a_launcher_file_brings_the_code_or_an_image_that_holds_it(path: Path) -> None:
    config = read(path)
    mounted = {
        local: remote for remote, local in config["file_mounts"].items() if not local.startswith(("~/.ray", "/"))
    }
    assert all((REPOSITORY / local).exists() for local in mounted)
    if "docker" not in config:
        assert {"deploy", "memory_store", "pipeline", "trainer", "pyproject.toml", "requirements.lock"} <= set(mounted)


def in_bash(commands: list[str], home: Path, *, extra: str = "") -> str:
    """What `commands` print when they run one after the other on a machine whose Ray only says how it was called."""
    ray = home / "hmn-env" / "bin" / "ray"
    ray.parent.mkdir(parents=True, exist_ok=True)
    ray.write_text('#!/bin/sh\necho "ray $* $RAY_ADDRESS v2=$RAY_enable_autoscaler_v2 files=$(ulimit -n)"\n')
    ray.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", "\n".join(["set -e", "touch ~/.bashrc", extra, *commands])],
        env={"HOME": str(home), "PATH": f"{ray.parent}:/usr/bin:/bin", "RAY_HEAD_IP": "192.0.2.10"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_what_ray_submit_and_ray_exec_run_finds_the_cluster_and_its_token(path: Path, tmp_path: Path) -> None:
    writes = [line for line in read(path)["setup_commands"] if "pip" not in line]
    shown = "bash -c '. ~/.bashrc; echo $RAY_AUTH_MODE at $RAY_ADDRESS'"
    assert in_bash([*writes, *writes, shown], tmp_path) == "token at auto\n"
    assert len((tmp_path / ".bashrc").read_text().splitlines()) == 1, "a second `ray up` adds nothing"


def test_a_machine_that_was_set_up_with_an_older_file_gets_the_newer_environment(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("export PATH=$HOME/hmn-env/bin:$PATH RAY_AUTH_MODE=token\n")
    writes = [line for line in read(DEPLOY / "cluster.yaml")["setup_commands"] if "pip" not in line]
    assert in_bash([*writes, "bash -c '. ~/.bashrc; echo $RAY_ADDRESS'"], tmp_path) == "auto\n"


def test_ray_starts_on_machines_of_ones_own_also_where_fewer_files_may_be_open(tmp_path: Path) -> None:
    config = read(DEPLOY / "cluster.yaml")
    # as `ray up` runs them: for a cluster of provider `local` its newer autoscaler never starts the last worker
    asked_for = "export RAY_enable_autoscaler_v2=1; ulimit -Sn 256; ulimit -Hn 1000"
    head = in_bash(config["head_start_ray_commands"][-1:], tmp_path, extra=asked_for)
    assert re.fullmatch(r"ray start --head --port=6379 .* v2=0 files=1000\n", head)
    worker = in_bash(config["worker_start_ray_commands"][-1:], tmp_path, extra=asked_for)
    assert worker.startswith("ray start --address=192.0.2.10:6379 ")
    assert worker.endswith("files=1000\n")


def test_a_script_that_ray_submit_copied_to_the_head_runs_there_also_beside_others(tmp_path: Path) -> None:
    for name in ("train.py", "inspect.py"):  # the second hides a module of Python's library from scripts beside it
        shutil.copy(DEPLOY / "jobs" / name, tmp_path)
    exports = next(line for line in read(DEPLOY / "cluster.yaml")["setup_commands"] if "export" in line)
    safe = dict(re.findall(r"(PYTHONSAFEPATH)=(\d)", exports))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "train.py"), "--help"],
        env=os.environ | safe | {"PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout


def schema() -> Any:
    return read(Path(__file__).parent / "kuberay.schema.yaml")


def cluster_of(manifest: dict[str, Any]) -> Any:
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_what_kuberay_takes(path: Path) -> None:
    manifest = read(path)
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(manifest, schema(), jsonschema.Draft202012Validator)
    cluster = cluster_of(manifest)
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in pods):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"]["limits"] == container["resources"]["requests"], "Ray counts on all of it"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["spec", "authOption"], {"mode": "token"}),
        (["spec", "headGroupSpec", "template", "spec", "securityContext", "runAsNonRoot"], False),
        (["spec", "workerGroupSpecs", 0, "replica"], 1),
        (["spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "env"], [{"name": "T", "value": "x"}]),
        (["apiVersion"], "ray.io/v1alpha1"),
    ],
)
def test_the_schema_refuses_a_manifest_that_is_wrong(place: list[Any], value: Any) -> None:
    manifest = read(DEPLOY / "kuberay" / "cluster.yaml")
    jsonschema.validate(manifest, schema(), jsonschema.Draft202012Validator)
    within = manifest
    for step in place[:-1]:
        within = within[step]
    within[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, schema(), jsonschema.Draft202012Validator)


def test_the_job_runs_a_command_that_exists_with_options_that_it_takes() -> None:
    entrypoint = shlex.split(read(DEPLOY / "kuberay" / "train.yaml")["spec"]["entrypoint"])
    assert entrypoint[:3] == ["python", "-m", "deploy.jobs.train"]
    context = hmn.commands["train"].make_context("train", entrypoint[3:])
    assert (REPOSITORY / context.params["config_option"]).is_file()
    workers = cluster_of(read(DEPLOY / "kuberay" / "train.yaml"))["workerGroupSpecs"][0]
    cores = int(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert read(DEPLOY / "kuberay" / "train.yaml")["spec"]["entrypointNumCpus"] <= cores, "or it is never placed"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydantic, when Ray Serve's schemas load
def test_the_service_is_an_application_that_ray_serve_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve import Application
    from ray.serve.schema import ServeDeploySchema

    from deploy.serve.build import ServiceArgs, app
    from deploy.serve.replica import APP_NAME

    config = ServeDeploySchema.model_validate(
        yaml.safe_load(read(DEPLOY / "kuberay" / "serve.yaml")["spec"]["serveConfigV2"])
    )
    (application,) = config.applications
    assert application.import_path == f"{app.__module__}:{app.__name__}"
    args = ServiceArgs.model_validate(application.args)
    assert [deployment.name for deployment in application.deployments] == [APP_NAME]
    with pytest.raises(ConfigError, match="expected a run with a checkpoint"):
        app(args.model_copy(update={"run": str(tmp_path)}))
    monkeypatch.setattr("deploy.serve.build.located", lambda source: source)
    assert isinstance(app(args), Application)
    with pytest.raises(ValueError, match="shard"):
        ServiceArgs.model_validate(application.args | {"shard": 3})


def test_no_file_of_a_cluster_holds_a_secret() -> None:
    for path in [*LAUNCHERS, *MANIFESTS, DEPLOY / "Dockerfile"]:
        for line in path.read_text().splitlines():
            assert not re.search(r"(?i)(token|password|secret|key)\s*[:=]\s*['\"]?[A-Za-z0-9+/_-]{16,}", line), line
