"""One boundary around what libraries do to a graph: whatever they raise becomes one line that says at which step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kaem.errors import ArtifactError, KaemError

_LONGEST = 300


def describe_error(error: BaseException) -> str:
    """Return what an exception says on one line, with its kind where the words alone would not tell."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:_LONGEST] if words else type(error).__name__


@contextmanager
def one_line(step: str, hint: str) -> Iterator[None]:
    """Turn what a library raises inside into an `ArtifactError` that names the step; our own errors pass.

    Args:
        step: What was being done, as the beginning of a sentence: "the generator cannot be joined to the prior".
        hint: What to do about it.

    Raises:
        ArtifactError: Anything was raised.
    """
    try:
        yield
    except KaemError:
        raise
    except Exception as error:  # torch's, onnx's, onnxscript's and protobuf's exceptions share no base
        raise ArtifactError(f"{step}: {describe_error(error)}", hint=hint) from error
