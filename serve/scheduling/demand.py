"""What a request asks of a scheduler, what a scheduler may hold, and the size of chunks that follows from both."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kaem.protocol.messages import MAX_MESSAGE_BYTES
from serve.scheduling.fair_queue import Ticket

_CHUNKS_AHEAD = 2  # that a reader may always have: one on its way out, one being computed
_POOL_SHARES = 512  # a stream's chunk is at most this part of the bytes that are free when it comes
CALL_BYTES = 24 << 10
"""What an open call holds, images or not: 22 kB were measured, half of them gRPC's."""

_LEAST_CHUNK_BYTES = 32 << 10
_INTERACTIVE_SHARE = 10  # interactive requests have as much for themselves as a tenth of what all may always hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What may wait and be held.

    Half of the bytes are for what each request may hold in any case. Interactive requests find a tenth of that beside
    it, at least one message, which bulk cannot take: bulk readers that do not read shut out no call of one row. The
    rest is lent to those who read fast.

    Attributes:
        max_queue_samples: Samples that may wait for a batch, of each request at most a full one; further requests are
            refused.
        max_held_bytes: Bytes that all calls together may hold.
        max_delay_s: How long a batch that is not full waits for more rows.
        stream_bytes: As many of these are set aside for calls that hold no images, see `serve.calls.places`.
        interactive_turn: Rows an interactive request may have computed before the next one has its turn.
    """

    max_queue_samples: int = 1 << 20
    max_held_bytes: int = 1 << 30
    max_delay_s: float = 0.0
    interactive_turn: int = 64
    stream_bytes: int = 0

    @property
    def base_bytes(self) -> int:
        """Bytes for what requests of either class may always hold."""
        return self.max_held_bytes // 2

    @property
    def interactive_bytes(self) -> int:
        """Bytes beside these, for interactive requests alone."""
        return min(max(self.base_bytes // _INTERACTIVE_SHARE, MAX_MESSAGE_BYTES), self.base_bytes // 2)

    @property
    def spare_bytes(self) -> int:
        """Bytes that are lent."""
        return self.max_held_bytes - self.base_bytes - self.interactive_bytes - self.stream_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a request asks of the scheduler.

    Attributes:
        rows: Rows of the job, at least 1.
        row_bytes: What a row takes while it is held.
        chunk_rows: Most rows of a chunk.
        window: Most rows computed ahead of the reader; two chunks are always allowed.
        is_bulk: Whether it belongs to the second class.
        may_shrink: Whether chunks may become smaller when much is held; otherwise they have `chunk_rows` rows.
        timeout_s: Seconds until the deadline, None for no deadline.
        due_rows: Rows that must be ready by then for the request to make sense; None for all.
        fixed_bytes: What the job holds besides its rows, from first to last.
        with_latents: Whether each image is to come beside its latent vector, see `serve.scheduling.sources`.
    """

    rows: int
    row_bytes: int
    chunk_rows: int
    window: int
    is_bulk: bool = False
    may_shrink: bool = False
    timeout_s: float | None = None
    due_rows: int | None = None
    fixed_bytes: int = 0
    with_latents: bool = False

    @property
    def rows_in_time(self) -> int:
        """Rows that must be ready by the deadline."""
        return self.rows if self.due_rows is None else min(self.due_rows, self.rows)

    def fitting_chunk_rows(self, free_bytes: int) -> int:
        """Return the rows of the job's chunks: fewer when many readers have to share the memory that is free."""
        if not self.may_shrink:
            return self.chunk_rows
        chunk_bytes = max(_LEAST_CHUNK_BYTES, free_bytes // _POOL_SHARES)
        return max(1, min(self.chunk_rows, chunk_bytes // self.row_bytes))

    def ticket(self, chunk_rows: int, now: float) -> Ticket:
        """Return a place in the rotation for a job with chunks of so many rows that comes now."""
        ahead = _CHUNKS_AHEAD * chunk_rows
        return Ticket(
            rows=self.rows,
            window=max(self.window * chunk_rows // self.chunk_rows, ahead),
            base=min(self.rows, ahead),
            row_bytes=self.row_bytes,
            fixed_bytes=self.fixed_bytes,
            is_bulk=self.is_bulk,
            is_whole=self.chunk_rows >= self.rows and not self.may_shrink,
            deadline=math.inf if self.timeout_s is None else now + self.timeout_s,
        )
