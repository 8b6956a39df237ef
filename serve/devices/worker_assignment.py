"""Which worker computes a batch: that of its own device, or, while it is lost, any other; first come, first served.

Lanes of the scheduler take a worker for one batch and give it back. What the keepers of devices find, that a worker is
gone or that there is a new one, is noted here too, and told to whom it concerns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import grpc

from kaem.errors import RemoteError
from kaem.sampler import Uniforms
from serve.devices.devices import Device
from serve.devices.worker_process import Worker
from serve.statuses import RefusedError

OnChange = Callable[[str, bool, int], None]
"""Told the name of a device, whether it computes now, and how many do; quick, and in whatever thread."""

_HOLD_S = 30.0  # that a batch waits for a device when there is none


@dataclass(slots=True, eq=False)
class Seat:
    """A device and the worker on it; guarded by the assignment's lock.

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


class WorkerAssignment:
    """The seats of a fleet, and who waits for a worker.

    Args:
        seats: One a device.

    Attributes:
        given_up: Set once lost devices are waited for no longer.
    """

    def __init__(self, seats: Sequence[Seat]) -> None:
        self._seats = seats
        self._queue: list[Seat] = []  # whose batches wait for a worker, in the order in which they came
        self._on_change: OnChange | None = None
        self._changed = threading.Condition()  # guards all of the above
        self.given_up = threading.Event()

    @property
    def num_alive(self) -> int:
        """Devices that compute."""
        return sum(seat.worker is not None for seat in self._seats)

    @property
    def is_watched(self) -> bool:
        """Whether somebody starts lost devices again."""
        return self._on_change is not None

    def watch(self, on_change: OnChange) -> None:
        """From now on a worker that is lost leaves its seat, until there is a new one."""
        with self._changed:
            self._on_change = on_change

    def give_up(self) -> list[Worker]:
        """Wait no longer for lost devices; return the workers that are left."""
        with self._changed:
            self.given_up.set()
            self._changed.notify_all()
            return [worker for seat in self._seats for worker in (seat.worker, seat.newcomer) if worker is not None]

    def expect(self, seat: Seat, newcomer: Worker | None) -> None:
        """Note who is being started for a seat."""
        with self._changed:
            seat.newcomer = newcomer

    def seat(self, seat: Seat, worker: Worker) -> None:
        """Let a newcomer take part."""
        with self._changed:
            seat.worker, seat.newcomer = worker, None
            self._changed.notify_all()
            self._tell(seat, is_up=True)

    def wait_left(self, seat: Seat) -> None:
        """Note that the worker of a seat is gone, and wait until the batch that it had has noticed too."""
        with self._changed:
            self._lose(seat)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not seat.is_busy)

    def take(self, seat: Seat) -> tuple[Seat, Worker]:
        """Wait for a worker, the seat's own, or any if that is lost; return where it sits too.

        Raises:
            RefusedError: UNAVAILABLE, there has been none for a while, or nobody starts any again.
        """
        with self._changed:
            self._queue.append(seat)
            try:
                alone_until: float | None = None
                while True:
                    chosen = self._next_for(seat)
                    if chosen is not None and chosen.worker is not None:
                        chosen.is_busy = True
                        return chosen, chosen.worker
                    if self.num_alive:
                        alone_until = None
                        self._changed.wait()
                        continue
                    alone_until = alone_until or time.monotonic() + _HOLD_S
                    left_s = alone_until - time.monotonic()
                    if left_s <= 0 or self.given_up.is_set():
                        raise none_left()
                    self._changed.wait(left_s)
            finally:
                self._queue.remove(seat)
                self._changed.notify_all()

    def _next_for(self, seat: Seat) -> Seat | None:
        """Return an idle seat that a batch of `seat` may have now: nobody who waits longer could take it."""
        earlier = self._queue[: self._queue.index(seat)]
        for one in [seat] if seat.worker is not None else self._seats:
            is_idle = one.worker is not None and not one.is_busy
            if is_idle and not any(other is one or other.worker is None for other in earlier):
                return one
        return None

    def give_back(self, seat: Seat, *, is_lost: bool = False) -> None:
        """Let others have the worker of a seat, or note that it is lost."""
        with self._changed:
            seat.is_busy = False
            if is_lost:
                self._lose(seat)
            self._changed.notify_all()

    def _lose(self, seat: Seat) -> None:
        """Note that the worker of a seat is gone; holds the lock."""
        if seat.worker is not None and self._on_change is not None:
            seat.worker = None
            self._tell(seat, is_up=False)

    def _tell(self, seat: Seat, *, is_up: bool) -> None:
        """Say what has become of a device, unless nobody listens any more; holds the lock."""
        if self._on_change is not None and not self.given_up.is_set():
            self._on_change(str(seat.device), is_up, self.num_alive)


def none_left() -> RefusedError:
    """Nothing is left to compute a batch."""
    error = RemoteError("no device is left that computes", hint="try again; the server starts them again")
    return RefusedError(grpc.StatusCode.UNAVAILABLE, error)
