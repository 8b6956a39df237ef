"""Several devices with one model: a process each, batches that outlive their process, and restarts.

Sampling is pure, so a batch whose worker is lost is computed again by another one: readers see a delay and nothing
else. A lost device is started again at once, and after that with growing pauses. It takes part again when it has shown
that its bits are still the others': the same numerics id, and the same images of the first batch of every size.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from kaem.artifact import Manifest
from kaem.engines.cpu import read_file
from kaem.errors import BackendError, KaemError
from kaem.onnx_file import read_artifact
from kaem.sampler import Images, Uniforms
from serve.devices.devices import Device, workers_of
from serve.devices.worker_assignment import OnChange, Seat, WorkerAssignment, none_left
from serve.devices.worker_process import ModelMemory, Worker, WorkerLostError

_MOST_LOST = 3  # workers with the same batch; then it is the batch that ends them
_LONG_S = 60.0  # a worker that has lived so long has proved itself
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_log = logging.getLogger(__name__)


def pause_s(failures: int) -> float:
    """Return the seconds before a device is started again that was lost so many times in short order before."""
    return min(_FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16), _LONGEST_PAUSE_S) if failures else 0.0


class DeviceEngine:
    """One device of a fleet as an engine of the server; see `serve.devices.engine.Engine`.

    Args:
        device_pool: That it belongs to.
        seat: Its place there.
        worker: On it, for what never changes.
    """

    def __init__(self, device_pool: DevicePool, seat: Seat, worker: Worker) -> None:
        self.device_pool = device_pool
        self.device = str(seat.device)
        self.provider = worker.provider
        self.workers = worker.workers
        self.manifest: Manifest = worker.manifest
        self.numerics_id = worker.numerics_id
        self._seat = seat

    def decode(self, uniform: Uniforms) -> Images:
        """Map rows of uniforms, shape (N, D), to images, on this device or, if it is lost, on another one.

        Raises:
            BackendError: The device was lost before the fleet is kept alive, or several were with these rows.
            RequestError: They are no uniforms.
            RefusedError: UNAVAILABLE, no device is left.
        """
        return self.device_pool.decode(self._seat, uniform)


class DevicePool:
    """Worker processes, one a device, all with the same model and the same bits.

    Args:
        path: The artifact.
        devices: At least one.
        workers: Threads of each process that share its batches, on a CPU; None to share the cores.
        is_wanted: Asked now and then while the processes start; once it says no, they are ended.

    Raises:
        ArtifactError: The artifact cannot be used.
        BackendError: A device cannot be used, or computes other bits than the first.
    """

    def __init__(
        self,
        path: Path,
        devices: Sequence[Device],
        *,
        workers: int | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        content = read_file(path)
        read_artifact(content, source=str(path))  # before a process is started for it
        self._model = ModelMemory(path, content)
        self._workers = workers_of(devices, workers)
        self._keepers: list[threading.Thread] = []
        started: list[Worker] = []
        try:
            started.extend(Worker(self._model, device, self._workers) for device in devices)
            for device, worker in zip(devices, started, strict=True):
                _greet(worker, device, started[0], is_wanted)
                _log.info("%s is process %d, for %s", device, worker.process.pid, path)
        except BaseException:
            for worker in started:
                worker.end()
                worker.release()
            self._model.close()
            raise
        self._seats = [Seat(device, worker) for device, worker in zip(devices, started, strict=True)]
        self._assignment = WorkerAssignment(self._seats)
        self.engines = tuple(
            DeviceEngine(self, seat, worker) for seat, worker in zip(self._seats, started, strict=True)
        )

    def keep_alive(self, sizes: Collection[int], on_change: OnChange, *, is_exact: bool = True) -> None:
        """From now on compute lost batches again, and start lost devices again.

        Args:
            sizes: Numbers of rows that batches will have.
            on_change: Told of every device that is lost or back.
            is_exact: Whether the numerics id promises bits; if not, no device must prove that it has those of others.

        Raises:
            BackendError: Devices have computed other bits under one numerics id.
        """
        for seat in self._seats:
            seat.firsts = {rows: asked for rows, asked in seat.firsts.items() if is_exact and rows in sizes}
            first = self._seats[0].firsts
            if any(first[rows][1] != digest for rows, (_, digest) in seat.firsts.items() if rows in first):
                raise BackendError(
                    f"{self._seats[0].device} and {seat.device} compute other bits under the same numerics id",
                    hint="serve each by its own server",
                )
        self._assignment.watch(on_change)
        self._keepers = [
            threading.Thread(target=self._keep, args=(seat,), name=f"kaem-keeper-{seat.device}") for seat in self._seats
        ]
        for keeper in self._keepers:
            keeper.start()

    def decode(self, seat: Seat, uniform: Uniforms) -> Images:
        """Compute a batch on the device of a seat, or on another one if that is lost; see `DeviceEngine.decode`."""
        reasons: list[str] = []
        while len(reasons) < _MOST_LOST:
            chosen, worker = self._assignment.take(seat)
            try:
                images = worker.decode(uniform)
            except WorkerLostError as error:
                reasons.append(f"{chosen.device}: {error}")
                worker.end()
                self._assignment.give_back(chosen, is_lost=True)
                if self._assignment.given_up.is_set():
                    raise none_left() from None
                if not self._assignment.is_watched:
                    break
                _log.warning("%s; its batch of %d rows is computed again", reasons[-1], len(uniform))
            except BaseException:
                self._assignment.give_back(chosen)
                raise
            else:
                if not self._assignment.is_watched and len(uniform) not in chosen.firsts:
                    chosen.firsts[len(uniform)] = uniform.copy(), _digest(images)
                self._assignment.give_back(chosen)
                return images
        raise BackendError(
            f"a batch of {len(uniform)} rows ended {len(reasons)} workers; {reasons[-1]}", hint="see the log for more"
        )

    def give_up(self) -> None:
        """Compute no more: wait no longer for lost devices, and end all processes, whatever they are doing."""
        for worker in self._assignment.give_up():
            worker.end()

    def close(self) -> None:
        """End all processes and free what is left; nobody computes any more."""
        present = self._assignment.give_up()
        for worker in present:
            worker.end()
        for keeper in self._keepers:
            keeper.join()
        if not self._keepers:
            for worker in present:
                worker.release()
        self._model.close()

    @property
    def states(self) -> dict[str, bool]:
        """Whether each device computes, by its name."""
        return {str(seat.device): seat.worker is not None for seat in self._seats}

    @property
    def num_alive(self) -> int:
        """Devices that compute."""
        return self._assignment.num_alive

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep(self, seat: Seat) -> None:
        """Start a device again whenever it is lost, until the fleet is closed; a thread of its own."""
        failures, worker = 0, seat.worker
        while worker is not None:
            began = time.monotonic()
            if worker.wait_over() and not self._assignment.given_up.is_set():
                _log.warning("%s: its process %d was stopped and is replaced", seat.device, worker.process.pid)
            self._assignment.wait_left(seat)
            worker.release()
            failures = 0 if time.monotonic() - began >= _LONG_S else failures
            worker = None
            while not self._assignment.given_up.wait(pause_s(failures)):
                failures += 1
                try:
                    newcomer = self._started(seat)
                except (KaemError, WorkerLostError, OSError) as error:
                    if not self._assignment.given_up.is_set():
                        _log.error("%s cannot be started again: %s", seat.device, error)
                    continue
                worker = newcomer  # whatever becomes of it as soon as it is seated
                self._assignment.seat(seat, newcomer)
                _log.warning("%s is back, as process %d, for %s", seat.device, newcomer.process.pid, self._model.path)
                break

    def _started(self, seat: Seat) -> Worker:
        """Return a new worker for a seat, warm, and proved to compute the bits of the one before."""
        worker = Worker(self._model, seat.device, self._workers)
        try:
            self._assignment.expect(seat, worker)
            if self._assignment.given_up.is_set():
                raise WorkerLostError("it is not needed any more")
            worker.greet()
            if worker.numerics_id != self.engines[0].numerics_id:
                raise BackendError(f"its numerics id is {worker.numerics_id} now", hint="restart the server")
            for rows, (uniform, digest) in seat.firsts.items():
                if _digest(worker.decode(uniform)) != digest:
                    raise BackendError(f"its images of a batch of {rows} are others now", hint="restart the server")
        except BaseException:
            self._assignment.expect(seat, None)
            worker.end()
            worker.release()
            raise
        return worker


def fleet_of(engines: Sequence[object]) -> DevicePool | None:
    """Return the fleet that engines belong to, if they are devices of one."""
    return next((engine.device_pool for engine in engines if isinstance(engine, DeviceEngine)), None)


def _greet(worker: Worker, device: Device, first: Worker, is_wanted: Callable[[], bool]) -> None:
    """Wait for a worker of a starting fleet.

    Raises:
        KaemError: It cannot open the model.
        BackendError: It ended, or its bits are not those of the first.
    """
    try:
        worker.greet(is_wanted)
    except WorkerLostError as error:
        raise BackendError(f"{device}: {error}", hint="see what it wrote above") from None
    if worker.numerics_id != first.numerics_id:
        raise BackendError(
            f"{device} computes with numerics id {worker.numerics_id}, the first device with {first.numerics_id}",
            hint="serve each kind of device by its own server",
        )


def _digest(images: Images) -> bytes:
    return hashlib.sha256(images.tobytes()).digest()
