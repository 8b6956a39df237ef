"""How a job ends that does not end well, in the words its client reads."""

from __future__ import annotations

import grpc

from kaem.errors import BackendError, RemoteError
from serve.admission import Refusal
from serve.statuses import RefusedError


def refused(refusal: Refusal) -> RefusedError:
    """There is no room for it, or no time: it was not let in."""
    return RefusedError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        RemoteError(refusal.message, hint=refusal.hint),
        retry_after_s=refusal.retry_after_s,
        quota=refusal.reason,
    )


def too_late() -> RefusedError:
    """Its deadline has passed."""
    error = RemoteError("the deadline passed before the samples were ready", hint="ask for fewer or allow more time")
    return RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, error)


def failed() -> BackendError:
    """A batch of it failed: our own words, never those of the runtime below us."""
    return BackendError("the batch with these rows could not be computed", hint="the server's log says why")


def stopping() -> RefusedError:
    """The scheduler is closed."""
    error = RemoteError("the server is stopping", hint="try again; a restarted server continues at any index")
    return RefusedError(grpc.StatusCode.UNAVAILABLE, error)
