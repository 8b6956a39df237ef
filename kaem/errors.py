"""Every error kaem raises on purpose.

    KaemError
    ├── ConfigError        a setting, option or preset is wrong              exit 2  INVALID_ARGUMENT
    │   └── AddressInUseError  a port or socket is taken for now             exit 1  UNAVAILABLE
    ├── RequestError       a seed, count, index or array is wrong            exit 2  INVALID_ARGUMENT
    ├── DataError          a data set is missing, corrupt or unsuitable      exit 2  INVALID_ARGUMENT
    ├── ArtifactError      a model file is missing, corrupt or not ours      exit 2  FAILED_PRECONDITION
    ├── VerificationError  an artifact does not keep what its manifest says  exit 1  FAILED_PRECONDITION
    ├── BackendError       the inference runtime is absent or failed         exit 1  INTERNAL
    └── RemoteError        the server could not be reached or gave up        exit 1  UNAVAILABLE

A message says what was wrong and with which value; `hint` says what to do next. The command line prints
both and exits with `exit_code`; the server answers with `grpc_status`, and the client turns that answer
back into the same class.
"""

from __future__ import annotations

from typing import ClassVar


class KaemError(Exception):
    """Base of all kaem errors.

    Args:
        message: What was wrong, with the offending value; one line, no trailing full stop.
        hint: The next action for the reader, or "" when there is none.
    """

    exit_code: ClassVar[int] = 1
    grpc_status: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class ConfigError(KaemError):
    """A setting, option or preset is wrong."""

    exit_code = 2
    grpc_status = "INVALID_ARGUMENT"


class AddressInUseError(ConfigError):
    """A port or socket is taken: the setting may be right, and the same start succeed a moment later."""

    exit_code = 1
    grpc_status = "UNAVAILABLE"


class RequestError(KaemError):
    """A seed, count, index or input array is outside what the model or the protocol allows."""

    exit_code = 2
    grpc_status = "INVALID_ARGUMENT"


class DataError(KaemError):
    """A data set is missing, corrupt or of a kind the model cannot train on."""

    exit_code = 2
    grpc_status = "INVALID_ARGUMENT"


class ArtifactError(KaemError):
    """A checkpoint or exported model is missing, corrupt, of an unknown version or not made by kaem."""

    exit_code = 2
    grpc_status = "FAILED_PRECONDITION"


class VerificationError(KaemError):
    """An artifact was measured and does not keep what its manifest promises."""

    exit_code = 1
    grpc_status = "FAILED_PRECONDITION"


class BackendError(KaemError):
    """The inference runtime is not installed, lacks the requested provider, or failed while running."""

    exit_code = 1
    grpc_status = "INTERNAL"


class RemoteError(KaemError):
    """The server could not be reached, refused the call for its own reasons, or broke off."""

    exit_code = 1
    grpc_status = "UNAVAILABLE"
