"""The files of deploy/ agree with the server, with the project and with each other."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import kaem
from cli.main import app
from serve.settings import ServeSettings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
AFTER_GRACE_S = 5.0  # the process ends by force when the grace is over; what is left is for a busy machine


@pytest.fixture(scope="module")
def dockerfile():
    """The script that runs the Dockerfile, as a module, and the stages it finds."""
    spec = importlib.util.spec_from_file_location("check_image", ROOT / "scripts" / "check_image.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.stages((DEPLOY / "Dockerfile").read_text())


@pytest.fixture(scope="module")
def manifests():
    folder = DEPLOY / "kubernetes"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert {*kustomization["resources"], "kustomization.yaml"} == {path.name for path in folder.iterdir()}
    documents = [yaml.safe_load((folder / name).read_text()) for name in kustomization["resources"]]
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def unit():
    """The systemd unit: every value of every setting."""
    found = {}
    for line in (DEPLOY / "kaem.service").read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def settings_of(arguments):
    """What the command would make of arguments; --config is a file of the machine it is deployed to."""
    given = get_command(app).commands["serve"].make_context("serve", list(arguments)).params
    settings = {name: value for name, value in given.items() if value is not None}
    files = {name: str(value) for name, value in settings.items() if name.endswith("_file")}
    return ServeSettings(**{name: v for name, v in (settings | files).items() if name not in ("model", "config")})


def labels_fit(selector, labels):
    return selector.items() <= labels.items()


def test_the_image_runs_as_nobody_without_a_shell_on_the_ports_of_the_server(dockerfile):
    script, (build, image) = dockerfile
    said = dict(image)
    user = said["USER"].partition(":")[0]
    assert user.isdigit()
    assert int(user) > 0
    shells = script.words(said["RUN"])
    assert {"/bin/sh", "/bin/bash", "/bin/dash"} < set(shells)
    settings = settings_of(script.words(said["CMD"]))
    assert settings.port == ServeSettings().port
    assert [int(port) for port in said["EXPOSE"].split()] == [settings.port, settings.http_port]
    assert script.words(said["ENTRYPOINT"]) == ["kaem", "serve"]
    check = script.words(said["HEALTHCHECK"].partition("CMD")[2].strip())
    assert f":{settings.http_port}/readyz" in check[-1]
    compile(check[-1], "HEALTHCHECK", "exec")
    runs = [script.words(rest) for name, rest in (*build, *image) if name == "RUN"]  # each in exec form
    assert all(runs)


def test_the_image_is_built_from_all_that_the_wheel_holds_and_from_files_that_docker_is_sent(dockerfile):
    _, (build, _) = dockerfile
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {word for name, rest in build if name == "COPY" for word in rest.split()[:-1]}
    needed = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    needed |= {"pyproject.toml", "constraints.txt", project["project"]["readme"], *project["project"]["license-files"]}
    assert copied == needed
    sent = re.findall(r"^!(\S+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), flags=re.MULTILINE)
    assert set(sent) == needed
    assert all((ROOT / name).exists() for name in needed)
    installed = next(rest for name, rest in build if name == "RUN" and "install" in rest)
    extras = set(re.search(r"\[([a-z,]+)\]", installed[1:])[1].split(","))
    assert extras == {"cpu", "http", "telemetry"}
    assert extras <= set(project["project"]["optional-dependencies"])


def test_the_unit_is_killed_only_well_after_its_grace_and_can_write_nowhere(unit):
    _, *arguments = shlex.split(unit["ExecStart"][-1].partition(" ")[2])
    settings = settings_of(arguments)
    assert float(unit["TimeoutStopSec"][-1]) >= settings.grace + AFTER_GRACE_S
    assert unit["KillSignal"] == ["SIGTERM"]
    hardened = {"DynamicUser": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "NoNewPrivileges": "yes"}
    assert {name: unit[name][-1] for name in hardened} == hardened
    assert unit["CapabilityBoundingSet"] == [""]
    assert "ReadWritePaths" not in unit


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_finds_no_fault_in_the_unit(tmp_path):
    path = tmp_path / "kaem.service"
    path.write_text((DEPLOY / "kaem.service").read_text().replace("/opt/kaem/bin/kaem ", "/bin/true "))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_pods_are_told_the_ports_they_listen_on_and_get_their_grace(manifests):
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    settings = settings_of(container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": settings.port, "http": settings.http_port}
    assert settings.port == ServeSettings().port
    assert settings.is_encrypted
    assert not settings.insecure
    pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= pause_s + settings.grace + AFTER_GRACE_S
    paths = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: get["path"] for name, get in paths.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/healthz",  # a pod that drains is not ready, and must not be restarted for it
    }
    assert {(get["port"], get["scheme"]) for get in paths.values()} == {("http", "HTTPS")}
    limit = container["resources"]["limits"]["memory"]
    assert int(limit.removesuffix("Gi")) << 30 > settings.max_memory


def test_pods_are_nobody_can_write_nowhere_and_mount_what_their_arguments_name(manifests):
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"].rpartition(":")[2] == kaem.__version__
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert all(mount["readOnly"] for mount in container["volumeMounts"])
    files = [word.rpartition("=")[2] for word in container["args"] if "/" in word]
    assert files
    assert all(any(file.startswith(f"{path}/") for path in mounts.values()) for file in files)


def test_service_and_budget_mean_the_pods_of_the_deployment(manifests, dockerfile):
    deployment = manifests["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    service = manifests["Service"]["spec"]
    budget = manifests["PodDisruptionBudget"]["spec"]
    assert labels_fit(deployment["selector"]["matchLabels"], labels)
    assert labels_fit(service["selector"], labels)
    assert labels_fit(budget["selector"]["matchLabels"], labels)
    assert service["clusterIP"] == "None"  # every client sees every pod
    (container,) = deployment["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == ports
    assert 0 < budget["minAvailable"] < deployment["replicas"]
    _, (_, image) = dockerfile
    user = dict(image)["USER"].partition(":")[0]
    assert deployment["template"]["spec"]["securityContext"]["runAsUser"] == int(user)
