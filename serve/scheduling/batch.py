"""One batch: how large it is to be, and how it is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kaem.errors import BackendError
from kaem.sampler import Images, Uniforms
from serve.scheduling.batch_costs import CostTable
from serve.scheduling.fair_queue import Span
from serve.scheduling.job import Job
from serve.scheduling.sources import DecodeBoth, Seeded, Source, draw, joined

Decode = Callable[[Uniforms], Images]
"""Uniforms (N, D) -> images (N, C, H, W), for N in the cost table."""

_QUICK = 1 / 8  # of a full batch: the most that interactive rows may take from bulk by going alone


@dataclass(slots=True, eq=False)
class Batch:
    """Rows to be computed together; without parts it is a probe, see `serve.scheduling.probes`."""

    parts: Sequence[tuple[Job, Span]]
    size: int
    ends_at: float

    @property
    def jobs(self) -> list[Job]:
        """Whose rows they are."""
        return [job for job, _ in self.parts]

    @property
    def rows(self) -> int:
        """Rows that somebody wants; the rest is padding."""
        return sum(span.rows for _, span in self.parts)

    def compute(self, decode: Decode, both: DecodeBoth | None, noise_dim: int, clock: Callable[[], float]) -> float:
        """Decode the batch and copy each job's rows into its chunks; return the engine's seconds.

        Raises:
            BackendError: The engine gave another number of images; whatever else it raises is passed on.
        """
        parts: list[tuple[Source, int, int]] = [(job.source, span.first, span.rows) for job, span in self.parts]
        uniform = draw(parts or [(Seeded(0, 0), 0, self.size)], self.size, noise_dim)
        decoding = clock()
        latents = None
        if both is not None and any(job.with_latents for job in self.jobs):
            images, latents = both(uniform)
        else:
            images = decode(uniform)
        seconds = clock() - decoding
        if len(images) != self.size:
            raise BackendError(f"the model made {len(images)} images of {self.size} rows")
        start = 0
        for job, span in self.parts:
            place = slice(start, start + span.rows)
            rows = images[place]
            job.fill(span.first, joined(rows, latents[place]) if job.with_latents and latents is not None else rows)
            start += span.rows
        return seconds


class Sizing:
    """Chooses the sizes of batches, one after the other.

    Args:
        costs: Measured seconds of each size.
    """

    def __init__(self, costs: CostTable) -> None:
        self._costs = costs
        self._went_alone = False

    def next(self, waiting: int, interactive: int) -> int:
        """Return the size of the next batch.

        A few interactive rows do not wait for the bulk rows that could fill their batch: they go alone where that
        takes a small part of the full batch's time, though never twice running, so that bulk loses no more than that.

        Args:
            waiting: Rows that could go.
            interactive: As many of these are interactive.
        """
        full, alone = self._costs.best(waiting), self._costs.fitting(interactive)
        is_quick = self._costs.batch_seconds(alone) <= _QUICK * self._costs.batch_seconds(full)
        self._went_alone = bool(interactive) and alone < full and is_quick and not self._went_alone
        return alone if self._went_alone else full
