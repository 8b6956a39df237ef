"""A job in blocks: consecutive ranges of indices, answered in any order by anyone, handed out in order.

Blocks are cut off the job as room for them appears, so a job of 2^64 samples takes no more memory than a small one:
at most `window` blocks are open, each with at most its own rows waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from kaem.sampler import Images


@dataclass(eq=False, slots=True)
class Block:
    """Rows `first .. end - 1`; those below `next` have arrived, and `ready` holds what nobody has taken yet."""

    first: int
    end: int
    next: int
    ready: deque[tuple[int, Images]] = field(default_factory=deque)

    @property
    def is_complete(self) -> bool:
        """Whether all rows have arrived."""
        return self.next == self.end


class Blocks:
    """Rows `start .. start + num - 1`, cut and put together again.

    Args:
        start: First index.
        num: Number of rows, at least 1.
        block_rows: Rows of each block but the last.
        window: Most blocks open at a time.
    """

    def __init__(self, start: int, num: int, *, block_rows: int, window: int) -> None:
        self._uncut = start
        self._end = start + num
        self._block_rows = block_rows
        self._window = window
        self._open: deque[Block] = deque()

    def __iter__(self) -> Iterator[Block]:
        """Iterate over the open blocks, in order."""
        return iter(self._open)

    @property
    def head(self) -> Block | None:
        """The block whose rows are handed out next."""
        return self._open[0] if self._open else None

    @property
    def is_done(self) -> bool:
        """Whether everything has been handed out."""
        return not self._open and self._uncut == self._end

    def cut(self) -> None:
        """Open as many blocks as there is room for."""
        while len(self._open) < self._window and self._uncut < self._end:
            end = min(self._uncut + self._block_rows, self._end)
            self._open.append(Block(self._uncut, end, self._uncut))
            self._uncut = end

    def add(self, block: Block, images: Images) -> None:
        """Note the next rows of a block."""
        block.ready.append((block.next, images))
        block.next += len(images)

    def take(self) -> tuple[int, Images] | None:
        """Return the next rows in order and the index of the first, None while they have not arrived."""
        while self._open:
            head = self._open[0]
            if head.ready:
                piece = head.ready.popleft()
                if head.is_complete and not head.ready:
                    self._open.popleft()
                return piece
            if not head.is_complete:
                return None
            self._open.popleft()
        return None
