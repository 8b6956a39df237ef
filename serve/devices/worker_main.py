"""A process that computes batches on one device for the server that started it, and ends when that server does.

    python -m serve.devices.worker_main LINK MEMORY MODEL '{"kind": "cuda", "number": 1, "path": "model.onnx", ...}'

The three numbers are descriptors: the socket to the server, the shared memory of a batch, and the artifact's bytes,
so that a worker started later runs what the first one ran, whatever has happened to the file meanwhile.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from kaem.artifact import write_manifest
from kaem.errors import KaemError, RequestError
from serve.devices.devices import Device, OpenEngine, open_engine
from serve.devices.worker_channel import (
    DONE,
    FAILED,
    READY,
    BrokenLinkError,
    Slot,
    receive_pair,
    send_pair,
    send_text,
)
from serve.malloc import keep_large_blocks


def main() -> None:
    """Compute until the server is gone."""
    # They reach the whole group of processes, at a keyboard or from systemd; the server decides when all is done.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    link_file, memory_file, model_file = map(int, sys.argv[1:4])
    wish: dict[str, Any] = json.loads(sys.argv[4])
    keep_large_blocks()
    with socket.socket(fileno=link_file) as link:
        threading.Thread(target=_end_with_server, args=(link_file,), daemon=True).start()
        content = Path(f"/proc/self/fd/{model_file}")
        try:
            try:
                device = Device(wish["kind"], wish["number"])
                with open_engine(content, device, workers=wish["workers"], name=Path(wish["path"])) as engine:
                    _compute(engine, link, memory_file)
            except KaemError as error:
                told = {key: text.replace(str(content), wish["path"]) for key, text in _told(error).items()}
                send_text(link, FAILED, told)
        except BrokenLinkError:
            return


def _compute(engine: OpenEngine, link: socket.socket, memory_file: int) -> None:
    """Answer batches until the link breaks or the engine fails: an engine that has failed once is not asked again."""
    ready = {
        "manifest": write_manifest(engine.manifest),
        "numerics_id": engine.numerics_id,
        "provider": engine.provider,
        "workers": engine.workers,
    }
    send_text(link, READY, ready)
    slot = Slot(memory_file, engine.manifest)
    while True:
        capacity, rows = receive_pair(link)
        slot.map(capacity)
        if not 1 <= rows <= capacity:
            raise BrokenLinkError(f"{rows} rows are asked of {capacity}")
        try:
            slot.images[:rows] = engine.decode(slot.uniform[:rows])
        except RequestError as error:  # these rows are to blame, and not the engine
            send_text(link, FAILED, _told(error))
        else:
            send_pair(link, DONE, rows)


def _told(error: KaemError) -> dict[str, str]:
    return {"class": type(error).__name__, "message": error.message, "hint": error.hint}


def _end_with_server(link_file: int) -> None:
    """End this process as soon as the server's end of the link is closed, in the middle of a batch too."""
    poll = select.poll()
    poll.register(link_file, select.POLLRDHUP)
    poll.poll()
    os._exit(0)


if __name__ == "__main__":
    main()
