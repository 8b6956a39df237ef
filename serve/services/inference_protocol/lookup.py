"""Which model a request means: names and versions as the protocol writes them."""

from __future__ import annotations

import grpc

from kaem.errors import RequestError
from serve.catalog.model import Models, ServedModel
from serve.statuses import RefusedError

_MOST_DIGITS = 18


def find_model(models: Models, name: str, version: str, *, fields: tuple[str, str]) -> ServedModel:
    """Return a model that is served.

    Args:
        models: All there are.
        name: Name of the model; "" for the only one.
        version: A whole number; "" for the one that is served by default.
        fields: Names of the request's fields where the name and the version stood.

    Raises:
        RefusedError: NOT_FOUND; INVALID_ARGUMENT, the version is no whole number; PERMISSION_DENIED;
            UNAVAILABLE.
    """
    name_field, version_field = fields
    if version and not (version.isascii() and version.isdecimal()):
        error = RequestError(f"version is {version[:40]!r}", hint="give a whole number, or none for the default")
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, error, field=version_field)
    try:
        if len(version) <= _MOST_DIGITS:
            return models.get(name, int(version or 0))
        model = models.get(name)
        error = RequestError(f"no version {version[:40]}... of model {model.info.name!r}")
        raise RefusedError(grpc.StatusCode.NOT_FOUND, error, field="version")
    except RefusedError as refused:
        if refused.code is not grpc.StatusCode.UNAVAILABLE:  # for which no field is to blame
            refused.field = version_field if refused.field == "version" else name_field
        raise


def version_of(model: ServedModel) -> str:
    """Return the version under which a model is served."""
    return str(model.info.version)
