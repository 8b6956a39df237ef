"""A worker process as the server sees it: started, greeted, given one batch after the other, and ended.

What can go wrong with it is one error, `WorkerLostError`: it died, it is silent, it does not keep to the protocol, or
its engine failed. None of these can be told from outside to be over, so a lost worker is killed and never asked again.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kaem.artifact import MANIFEST_KEY, Manifest, read_manifest
from kaem.errors import ArtifactError, BackendError, ConfigError, KaemError, RequestError
from kaem.sampler import Images, Uniforms
from serve.devices.devices import Device
from serve.devices.worker_channel import (
    DONE,
    FAILED,
    MOST_ROWS,
    READY,
    BrokenLinkError,
    SilentLinkError,
    Slot,
    receive_pair,
    receive_text,
    send_pair,
)

_START_S = 600.0  # to open a model, and to compute the first batch of a size: kernels may be compiled and captured
_PATIENCE_S = 20.0  # with a batch of a known size, beside the time that the slowest one took
_PATIENCE_TIMES = 20
_LOOK_S = 0.1  # between two looks whether a process that starts is still wanted
_END_S = 5.0  # from the end of the link to the end of the process
_STOPPED_LOOKS, _STOPPED_LOOK_S = 3, 0.5  # a process that is stopped at so many looks does not come back by itself
_ERRORS = {cls.__name__: cls for cls in (ArtifactError, BackendError, ConfigError, RequestError)}


_running: set[subprocess.Popen[bytes]] = set()  # every worker of this process
_changing = threading.Lock()  # guards that


class WorkerLostError(Exception):
    """A worker computes no more; the message says why."""


class ModelMemory:
    """An artifact's bytes in an anonymous file, for every worker that is ever started for it.

    Args:
        path: Where the artifact comes from, for messages.
        content: Its bytes.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        self.file = os.memfd_create("kaem-model")
        with os.fdopen(os.dup(self.file), "wb") as file:
            file.write(content)

    def close(self) -> None:
        """Free the memory; workers that have been started may still read it."""
        os.close(self.file)


class Worker:
    """One process on one device; every method but `end` is called by one thread at a time.

    Args:
        model: What it computes.
        device: Where.
        workers: Threads that share each batch on a CPU.

    Attributes:
        manifest, numerics_id, provider, workers: Of its engine, once it has been greeted.
    """

    manifest: Manifest
    numerics_id: str
    provider: str
    workers: int

    def __init__(self, model: ModelMemory, device: Device, workers: int | None) -> None:
        self._device = device
        self._path = model.path
        self._slowest_s: dict[int, float] = {}  # by the rows of a batch
        self._memory = os.memfd_create("kaem-batch")
        self._link, theirs = socket.socketpair()
        wish = {"kind": device.kind, "number": device.number, "workers": workers, "path": str(model.path)}
        files = (theirs.fileno(), self._memory, model.file)
        try:
            self.process = subprocess.Popen(  # noqa: S603  # this very interpreter, and words of our own
                [
                    *(
                        sys.executable,
                        "-P",
                        *(f"-W{option}" for option in sys.warnoptions),
                        "-m",
                        "serve.devices.worker_main",
                    ),
                    *map(str, files),
                    json.dumps(wish),
                ],
                stdin=subprocess.DEVNULL,
                stdout=2,  # standard output is the command's, and holds nothing but an address
                pass_fds=files,
                # The modules that run here, wherever they were found, and none of the folder that this was started in.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            )
        except BaseException:
            self._close_files()
            raise
        finally:
            theirs.close()
        with _changing:
            _running.add(self.process)

    def greet(self, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Wait until the model is open and note what it is.

        Args:
            is_wanted: Asked now and then; once it says no, there is no more waiting.

        Raises:
            KaemError: The worker's own, if it cannot open the model.
            WorkerLostError: It ended, was stopped, took too long, or is not wanted any more.
        """
        answers = select.poll()  # unlike select, for descriptors of any number
        answers.register(self._link, select.POLLIN)
        until = time.monotonic() + _START_S
        stopped_s = 0.0
        while time.monotonic() < until and not answers.poll(1e3 * _LOOK_S):
            if not is_wanted():
                raise WorkerLostError("its process is not needed any more")
            stopped_s = stopped_s + _LOOK_S if _is_stopped(self.process.pid) else 0.0
            if stopped_s >= _STOPPED_LOOKS * _STOPPED_LOOK_S:
                raise WorkerLostError("its process was stopped before it was ready")
        self._link.settimeout(_PATIENCE_S)
        try:
            content = self._answer(READY)
            self.manifest = read_manifest({MANIFEST_KEY: content["manifest"]}, source=str(self._path))
            self.numerics_id, self.provider = str(content["numerics_id"]), str(content["provider"])
            self.workers = int(content["workers"])
            self._slot = Slot(self._memory, self.manifest)
        except (BrokenLinkError, KeyError, TypeError, ValueError, OSError) as error:
            raise WorkerLostError(f"its process {self._ending(error)} before it was ready") from None

    def decode(self, uniform: Uniforms) -> Images:
        """Map rows of uniforms, shape (N, D), to images, shape (N, C, H, W), in memory of their own.

        Raises:
            RequestError: The engine takes no such uniforms; the worker goes on.
            WorkerLostError: It gave none.
        """
        rows = len(uniform)
        if rows > MOST_ROWS:
            raise ValueError(f"{rows} rows; a batch has at most {MOST_ROWS}")
        known_s = self._slowest_s.get(rows)
        try:
            self._link.settimeout(_START_S if known_s is None else _PATIENCE_S + _PATIENCE_TIMES * known_s)
            began = time.monotonic()
            self._slot.grow(rows)
            self._slot.uniform[:rows] = uniform
            send_pair(self._link, self._slot.capacity, rows)
            if self._answer(DONE) != rows:
                raise BrokenLinkError("it answers another batch")
        except RequestError:
            raise
        except KaemError as error:
            raise WorkerLostError(f"its engine failed: {error}") from None
        except (BrokenLinkError, OSError) as error:
            raise WorkerLostError(f"its process {self._ending(error)}") from None
        self._slowest_s[rows] = max(known_s or 0.0, time.monotonic() - began)
        return self._slot.images[:rows].copy()

    def wait_over(self) -> bool:
        """Wait until the process has ended; return whether it was stopped, as by SIGSTOP, and is ended for that.

        A process that is stopped holds its device and answers nothing, and nobody may ever let it go on.
        """
        ending = select.poll()
        ending.register(self._link, select.POLLRDHUP)
        stopped = 0
        while not ending.poll(1e3 * _STOPPED_LOOK_S):
            stopped = stopped + 1 if _is_stopped(self.process.pid) else 0
            if stopped == _STOPPED_LOOKS:
                self.end()
                return True
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.end()
        return False

    def end(self) -> None:
        """End the process, which has nothing to tidy up: nobody wants what it computes."""
        self.process.kill()
        self.process.wait()

    def release(self) -> None:
        """Free the descriptors, once nobody decodes any more and the process has ended."""
        with _changing:
            _running.discard(self.process)
        self._close_files()

    def _answer(self, wanted: int) -> Any:
        """Return the rows of a DONE answer, or the content of a READY one.

        Raises:
            KaemError: The answer is FAILED.
            BrokenLinkError: It is something else.
        """
        kind, number = receive_pair(self._link)
        if kind == FAILED:
            content = receive_text(self._link, number)
            error = _ERRORS.get(content.get("class", ""), BackendError)
            raise error(str(content.get("message", "")), hint=str(content.get("hint", "")))
        if kind != wanted:
            raise BrokenLinkError(f"it answers {kind}")
        return receive_text(self._link, number) if kind == READY else number

    def _ending(self, error: Exception) -> str:
        """Return how the process ended, or else what is wrong with it."""
        try:
            status = self.process.wait(0 if isinstance(error, SilentLinkError) else _END_S)
        except subprocess.TimeoutExpired:
            return f"is of no use, for {error}"
        return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"

    def _close_files(self) -> None:
        self._link.close()
        os.close(self._memory)


def kill_all() -> None:
    """Kill every worker of this process without waiting for anything, also those that are stopped."""
    for process in list(_running):  # whoever holds the lock may hang
        process.kill()


def _is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal; one that a debugger holds is another matter."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] == "T"
