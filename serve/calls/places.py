"""Places for calls that last: health watches, reflection, ModelStreamInfer. None holds images, but each holds memory.

A client may open thousands on one connection and forget them. What they may hold together is set aside of
`--max-memory`, and no connection may take more than an eighth of it, so that one client cannot shut out the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from kaem.errors import RemoteError
from serve.statuses import RefusedError

QUOTA = "streams"
_SHARE = 8
_LEAST_PER_CONNECTION = 16
_RETRY_S = 1.0  # nobody knows when one will end
_KINDS = "health watches, reflection and ModelStreamInfer"


class Places:
    """As many places as a server has.

    Used in the event loop only.

    Attributes:
        most: Of all connections together.
        most_of_one: Of one connection.

    Args:
        most: Places.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.most_of_one = max(_LEAST_PER_CONNECTION, most // _SHARE)
        self._taken: Counter[str] = Counter()

    @property
    def num_taken(self) -> int:
        """Places that are taken."""
        return self._taken.total()

    @contextmanager
    def take(self, peer: str) -> Iterator[None]:
        """Take a place until the end of the block.

        Args:
            peer: The connection, by the address it comes from.

        Raises:
            RefusedError: RESOURCE_EXHAUSTED with RetryInfo, none is free.
        """
        if self._taken[peer] >= self.most_of_one:
            raise _refused(
                f"this connection has {self._taken[peer]} streams open ({_KINDS}), as many as one may",
                hint="end some that are no longer needed: one watch for each name is enough",
            )
        if self.num_taken >= self.most:
            raise _refused(
                f"{self.num_taken} streams are open ({_KINDS}), as many as may be",
                hint="try again later, or raise --max-memory of the server",
            )
        self._taken[peer] += 1
        try:
            yield
        finally:
            self._taken[peer] -= 1
            if not self._taken[peer]:
                del self._taken[peer]


def _refused(message: str, *, hint: str) -> RefusedError:
    error = RemoteError(message, hint=hint)
    return RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, error, quota=QUOTA, retry_after_s=_RETRY_S)
