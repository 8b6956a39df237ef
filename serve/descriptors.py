"""Descriptors: every connection takes one, and a server that has none left can neither answer nor read a file.

The soft limit, which is often 1024 where the hard one is a million, is raised to the hard one. Of what there is, a part
is kept for the server itself, and each port has its own share, so that connections to one cannot shut out the other.
"""

from __future__ import annotations

import logging
import resource
from typing import NamedTuple

_MOST = 1 << 20  # more is never asked for: some libraries walk over all that are possible
_OWN = 32  # of an idle server, with models and certificates to read; an idle one has 17 with all its ports
_PER_DEVICE = 4  # link, memory, and those of a process that is just being started
_MOST_HTTP = 256  # connections: probes, Prometheus, somebody who looks at samples
_LEAST = 8
_log = logging.getLogger(__name__)


class Shares(NamedTuple):
    """Connections that each port may have at a time."""

    grpc: int
    http: int


def raise_limit() -> int:
    """Let this process have as many descriptors as it may; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return _MOST if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    _log.info("up to %d descriptors instead of %d", most, soft)
    return most


def shares(*, devices: int = 0) -> Shares:
    """Return the shares of the ports, for the limit as it is.

    Args:
        devices: Processes that the server starts.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _MOST if soft == resource.RLIM_INFINITY else soft
    http = max(_LEAST, min(_MOST_HTTP, limit // 8))
    return Shares(grpc=max(_LEAST, limit - http - _OWN - _PER_DEVICE * devices), http=http)
