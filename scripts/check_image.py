"""Run what deploy/Dockerfile says without Docker: build the environment, start the server, ask its health check.

    python scripts/check_image.py model.onnx           # takes a minute: it installs the server from the package index

Every COPY and RUN of the build stage is carried out in a temporary folder; then ENTRYPOINT and CMD are started with an
empty environment but ENV, and HEALTHCHECK is run until it succeeds. Where this user may (root with `unshare`), the
server runs as the image's USER on a file system that is read-only throughout, without `/bin/sh`. What needs Docker
itself is not shown: the base image, its layers, and that its shell is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
_ENVIRONMENT = "/opt/kaem"
_MODEL = "/models/model.onnx"
_START_S = 120.0


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield (INSTRUCTION, rest) of a Dockerfile, its continued lines joined and comments dropped."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, rest = line.strip().partition(" ")
        if name:
            yield name, rest.strip()


def stages(text: str) -> list[list[tuple[str, str]]]:
    """Return the instructions of each stage, from its FROM on; ARGs before the first are left out."""
    found: list[list[tuple[str, str]]] = []
    for name, rest in instructions(text):
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, rest))
    return found


def words(rest: str) -> list[str]:
    """Return the words of an instruction in exec form.

    Raises:
        ValueError: It is in shell form, and there is no shell.
    """
    found = json.loads(rest)
    if not isinstance(found, list):
        raise ValueError(f"not in exec form: {rest}")
    return [str(word) for word in found]


def build(stage: list[tuple[str, str]], folder: Path) -> None:
    """Carry out COPY and RUN of the build stage below a folder."""
    for name, rest in stage:
        if name == "COPY":
            *sources, target = rest.split()
            into = folder / target.removeprefix("/")
            for source in sources:
                path = ROOT / source
                if path.is_dir():
                    shutil.copytree(path, into, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    into.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, into)
        elif name == "RUN":
            command = [_placed(word, folder) for word in words(rest)]
            print("RUN", *command, flush=True)
            subprocess.run(command, check=True)


def serve(stage: list[tuple[str, str]], folder: Path, model: Path) -> None:
    """Start the server as the image would, wait for its health check, and stop it.

    Raises:
        SystemExit: It was not healthy in time, or did not stop in order.
    """
    said = dict(stage)
    environment = dict(word.split("=", 1) for name, rest in stage if name == "ENV" for word in rest.split())
    environment["PATH"] = f"{folder}{_ENVIRONMENT}/bin:/usr/bin:/bin"
    command = [*words(said["ENTRYPOINT"]), *words(said["CMD"])]
    command = [str(model) if word == _MODEL else word for word in command]
    check = words(said["HEALTHCHECK"].partition("CMD")[2].strip())
    before = _confinement(said["USER"].partition(":")[0])
    print("ENTRYPOINT", *command, "confined" if before else "not confined: not root, or no unshare", flush=True)
    with subprocess.Popen([*before, *command], env=environment) as process:
        began = time.monotonic()
        while subprocess.run(check, env=environment, check=False, stderr=subprocess.DEVNULL).returncode:
            if process.poll() is not None or time.monotonic() - began > _START_S:
                process.kill()
                sys.exit("the health check did not succeed")
            time.sleep(0.2)
        print(f"HEALTHCHECK succeeded {time.monotonic() - began:.1f} s after the start", flush=True)
        straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with straight.open("http://127.0.0.1:9090/metrics", timeout=5) as answer:
            if b"kaem_ready 1.0" not in answer.read():
                sys.exit("/metrics does not say that the server is ready")
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=40)
    if status:
        sys.exit(f"the server ended with {status} after SIGTERM")
    print("SIGTERM: ended in order")


def _placed(word: str, folder: Path) -> str:
    for place in (_ENVIRONMENT, "/src"):
        word = word.replace(place, f"{folder}{place}")
    return sys.executable if word == "python" else word


def _confinement(user: str) -> list[str]:
    """Return the words that run a command as `user` on a read-only system without a shell; none if not allowed."""
    if os.geteuid() or not shutil.which("unshare") or not shutil.which("setpriv"):
        return []
    script = (
        "mount --make-rprivate / && mount --bind /dev/null /bin/sh && "
        "for at in $(awk '{print $2}' /proc/mounts); do mount -o remount,bind,ro $at 2>/dev/null; done; "
        f'exec setpriv --reuid {user} --regid {user} --clear-groups --no-new-privs --bounding-set=-all "$@"'
    )
    return ["unshare", "--mount", "bash", "-c", script, "confined"]


def main() -> None:
    """Build and serve in a temporary folder that everybody may read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an artifact")
    model = parser.parse_args().model
    first, last = stages((ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        build(first, folder)
        served = folder / "model.onnx"
        shutil.copy(model, served)
        served.chmod(0o644)
        serve(last, folder, served)


if __name__ == "__main__":
    main()
