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
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from kaem.artifact import Manifest
from kaem.errors import BackendError, KaemError, RemoteError
from kaem.runtime import read_file
from kaem.sampler import Images, Uniforms
from serve.devices import Device, workers_of
from serve.process import Model, Worker, WorkerLostError
from serve.statuses import RefusedError

OnChange = Callable[[str, bool, int], None]
"""Told the name of a device, whether it computes now, and how many do; quick, and in whatever thread."""

_MOST_LOST = 3  # workers with the same batch; then it is the batch that ends them
_HOLD_S = 30.0  # that a batch waits for a device when there is none
_LONG_S = 60.0  # a worker that has lived so long has proved itself
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_log = logging.getLogger(__name__)


def pause_s(failures: int) -> float:
    """Return the seconds before a device is started again that was lost so many times in short order before."""
    return min(_FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16), _LONGEST_PAUSE_S) if failures else 0.0


@dataclass(slots=True, eq=False)
class _Seat:
    """A device and the worker on it; guarded by the fleet's lock.

    Attributes:
        device: Which one.
        worker: That computes on it; None while it is lost.
        is_busy: Whether a batch is on its way through the worker.
        newcomer: That is being started in its place.
        firsts: For each size, the first uniforms and the digest of their images.
    """

    device: Device
    worker: Worker | None
    is_busy: bool = False
    newcomer: Worker | None = None
    firsts: dict[int, tuple[Uniforms, bytes]] = field(default_factory=dict)


class DeviceEngine:
    """One device of a fleet as an engine of the server; see `serve.engine.Engine`.

    Args:
        fleet: That it belongs to.
        seat: Its place there.
        worker: On it, for what never changes.
    """

    def __init__(self, fleet: Fleet, seat: _Seat, worker: Worker) -> None:
        self.fleet = fleet
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
        return self.fleet.decode(self._seat, uniform)


class Fleet:
    """Worker processes, one a device, all with the same model and the same bits.

    Args:
        path: The artifact.
        devices: At least one.
        workers: Threads of each process that share its batches, on a CPU; None to share the cores.

    Raises:
        ArtifactError: The artifact cannot be used.
        BackendError: A device cannot be used, or computes other bits than the first.
    """

    def __init__(self, path: Path, devices: Sequence[Device], *, workers: int | None = None) -> None:
        self._model = Model(path, read_file(path))
        self._workers = workers_of(devices, workers)
        self._changed = threading.Condition()  # guards all of the below
        self._seats: list[_Seat] = []
        self._queue: list[_Seat] = []  # whose batches wait for a worker, in the order in which they came
        self._ending = threading.Event()
        self._on_change: OnChange | None = None
        self._keepers: list[threading.Thread] = []
        started: list[Worker] = []
        try:
            started.extend(Worker(self._model, device, self._workers) for device in devices)
            for device, worker in zip(devices, started, strict=True):
                _greet(worker, device, started[0])
                _log.info("%s is process %d", device, worker.process.pid)
        except BaseException:
            for worker in started:
                worker.end(gently=False)
                worker.release()
            self._model.close()
            raise
        self._seats = [_Seat(device, worker) for device, worker in zip(devices, started, strict=True)]
        self.engines = tuple(
            DeviceEngine(self, seat, worker) for seat, worker in zip(self._seats, started, strict=True)
        )

    def keep_alive(self, sizes: Collection[int], on_change: OnChange) -> None:
        """From now on compute lost batches again, and start lost devices again.

        Args:
            sizes: Numbers of rows that batches will have.
            on_change: Told of every device that is lost or back.

        Raises:
            BackendError: Devices have computed other bits under one numerics id.
        """
        with self._changed:
            for seat in self._seats:
                seat.firsts = {rows: asked for rows, asked in seat.firsts.items() if rows in sizes}
                first = self._seats[0].firsts
                if any(first[rows][1] != digest for rows, (_, digest) in seat.firsts.items() if rows in first):
                    raise BackendError(
                        f"{self._seats[0].device} and {seat.device} compute other bits under the same numerics id",
                        hint="serve each by its own server",
                    )
            self._on_change = on_change
            self._keepers = [
                threading.Thread(target=self._keep, args=(seat,), name=f"kaem-keeper-{seat.device}")
                for seat in self._seats
            ]
        for keeper in self._keepers:
            keeper.start()

    def decode(self, seat: _Seat, uniform: Uniforms) -> Images:
        """Compute a batch on the device of a seat, or on another one if that is lost; see `DeviceEngine.decode`."""
        reasons: list[str] = []
        while len(reasons) < _MOST_LOST:
            chosen, worker = self._take(seat)
            try:
                images = worker.decode(uniform)
            except WorkerLostError as error:
                reasons.append(f"{chosen.device}: {error}")
                worker.end(gently=False)
                self._give_back(chosen, is_lost=True)
                if self._on_change is None:
                    break
                _log.warning("%s; its batch of %d rows is computed again", reasons[-1], len(uniform))
            except BaseException:
                self._give_back(chosen)
                raise
            else:
                if self._on_change is None and len(uniform) not in chosen.firsts:
                    chosen.firsts[len(uniform)] = uniform.copy(), _digest(images)
                self._give_back(chosen)
                return images
        raise BackendError(
            f"a batch of {len(uniform)} rows ended {len(reasons)} workers; {reasons[-1]}", hint="see the log for more"
        )

    def give_up(self) -> None:
        """Wait no longer for lost devices."""
        with self._changed:
            self._ending.set()
            self._changed.notify_all()

    def close(self) -> None:
        """End all processes; nobody computes any more."""
        self.give_up()
        with self._changed:
            present = [worker for seat in self._seats for worker in (seat.worker, seat.newcomer) if worker is not None]
        for worker in present:
            worker.end()
        for keeper in self._keepers:
            keeper.join()
        if not self._keepers:
            for worker in present:
                worker.release()
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def num_alive(self) -> int:
        """Devices that compute."""
        return sum(seat.worker is not None for seat in self._seats)

    def _take(self, seat: _Seat) -> tuple[_Seat, Worker]:
        """Wait for a worker and mark it busy: the seat's own, or any if that is lost; first come, first served."""
        with self._changed:
            self._queue.append(seat)
            try:
                deadline = time.monotonic() + _HOLD_S
                while True:
                    chosen = self._next_for(seat)
                    if chosen is not None and chosen.worker is not None:
                        chosen.is_busy = True
                        return chosen, chosen.worker
                    if self.num_alive:
                        deadline = time.monotonic() + _HOLD_S
                    elif self._ending.is_set() or not self._changed.wait_for(
                        lambda: self.num_alive or self._ending.is_set(), deadline - time.monotonic()
                    ):
                        raise _none_left()
                    else:
                        continue
                    self._changed.wait()
            finally:
                self._queue.remove(seat)
                self._changed.notify_all()

    def _next_for(self, seat: _Seat) -> _Seat | None:
        """Return an idle seat that a batch of `seat` may have now: nobody who waits longer could take it."""
        earlier = self._queue[: self._queue.index(seat)]
        for one in [seat] if seat.worker is not None else self._seats:
            is_idle = one.worker is not None and not one.is_busy
            if is_idle and not any(other is one or other.worker is None for other in earlier):
                return one
        return None

    def _give_back(self, seat: _Seat, *, is_lost: bool = False) -> None:
        with self._changed:
            seat.is_busy = False
            if is_lost:
                self._lose(seat)
            self._changed.notify_all()

    def _lose(self, seat: _Seat) -> None:
        """Note that the worker of a seat is gone; holds the lock."""
        if seat.worker is not None and self._on_change is not None:
            seat.worker = None
            self._tell(seat, is_up=False)

    def _tell(self, seat: _Seat, *, is_up: bool) -> None:
        """Say what has become of a device, unless nobody listens any more; holds the lock."""
        if self._on_change is not None and not self._ending.is_set():
            self._on_change(str(seat.device), is_up, self.num_alive)

    def _keep(self, seat: _Seat) -> None:
        """Start a device again whenever it is lost, until the fleet is closed; a thread of its own."""
        failures = 0
        while (worker := seat.worker) is not None:
            began = time.monotonic()
            worker.process.wait()
            with self._changed:
                self._lose(seat)
                self._changed.notify_all()
                self._changed.wait_for(lambda: not seat.is_busy)  # its batch is about to notice
            worker.release()
            failures = 0 if time.monotonic() - began >= _LONG_S else failures
            while not self._ending.wait(pause_s(failures)):
                failures += 1
                try:
                    newcomer = self._started(seat)
                except (KaemError, WorkerLostError, OSError) as error:
                    if not self._ending.is_set():
                        _log.error("%s cannot be started again: %s", seat.device, error)
                    continue
                with self._changed:
                    seat.worker, seat.newcomer = newcomer, None
                    self._changed.notify_all()
                    self._tell(seat, is_up=True)
                _log.warning("%s is back, as process %d", seat.device, newcomer.process.pid)
                break

    def _started(self, seat: _Seat) -> Worker:
        """Return a new worker for a seat, warm, and proved to compute the bits of the one before."""
        worker = Worker(self._model, seat.device, self._workers)
        try:
            with self._changed:
                seat.newcomer = worker
            if self._ending.is_set():
                raise WorkerLostError("it is not needed any more")
            worker.greet()
            if worker.numerics_id != self.engines[0].numerics_id:
                raise BackendError(f"its numerics id is {worker.numerics_id} now", hint="restart the server")
            for rows, (uniform, digest) in seat.firsts.items():
                if _digest(worker.decode(uniform)) != digest:
                    raise BackendError(f"its images of a batch of {rows} are others now", hint="restart the server")
        except BaseException:
            with self._changed:
                seat.newcomer = None
            worker.end(gently=False)
            worker.release()
            raise
        return worker


def fleet_of(engines: Sequence[object]) -> Fleet | None:
    """Return the fleet that engines belong to, if they are devices of one."""
    return next((engine.fleet for engine in engines if isinstance(engine, DeviceEngine)), None)


def _greet(worker: Worker, device: Device, first: Worker) -> None:
    """Wait for a worker of a starting fleet.

    Raises:
        KaemError: It cannot open the model.
        BackendError: It ended, or its bits are not those of the first.
    """
    try:
        worker.greet()
    except WorkerLostError as error:
        raise BackendError(f"{device}: {error}", hint="see what it wrote above") from None
    if worker.numerics_id != first.numerics_id:
        raise BackendError(
            f"{device} computes with numerics id {worker.numerics_id}, the first device with {first.numerics_id}",
            hint="serve each kind of device by its own server",
        )


def _digest(images: Images) -> bytes:
    return hashlib.sha256(images.tobytes()).digest()


def _none_left() -> RefusedError:
    error = RemoteError("no device is left that computes", hint="try again; the server starts them again")
    return RefusedError(grpc.StatusCode.UNAVAILABLE, error)
