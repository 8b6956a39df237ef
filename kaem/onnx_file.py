"""The bytes of an ONNX file, read no further than its outermost fields: what describes it, and a digest of the rest.

An ONNX file is one protobuf message, a sequence of fields:

    tag (varint: number << 3 | wire type), then a varint, 4 or 8 bytes, or a length (varint) and so many bytes

Field 14, `metadata_props`, holds pairs of a key (1) and a value (2). All other bytes are what a runtime computes with,
and their SHA-256 is the graph's fingerprint. It is compared before any runtime sees the file: a graph that was damaged
can crash the process that opens it, and mostly it opens, and computes something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from kaem.artifact import MANIFEST_KEY, Manifest, read_manifest
from kaem.errors import ArtifactError

_GRAPH, _METADATA = 7, 14
_KEY, _VALUE = 1, 2
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_MOST_VARINT_BYTES = 10


class _Field(NamedTuple):
    """One field: its number, where its tag begins, and its content, which ends where the field does."""

    number: int
    begin: int
    content: memoryview
    end: int


def read_artifact(content: bytes, *, source: str) -> Manifest:
    """Return the manifest of an artifact that is whole: its graph has the digest that the manifest states.

    Args:
        content: The file.
        source: Its name, for messages.

    Raises:
        ArtifactError: It is no ONNX file, it has no manifest or a damaged one, or its graph is another one.
    """
    metadata, found = _described(content, source)
    manifest = read_manifest(metadata, source=source)
    stated = manifest.graph_fingerprint
    if stated != found:
        raise ArtifactError(
            f"the graph of {source} was changed after its export: its digest is {found[:19]}, "
            f"its manifest says {stated[:19] or 'none'}",
            hint="copy it again, or export it again; write it elsewhere and rename it into place",
        )
    return manifest


def require_whole(content: bytes, *, source: str) -> None:
    """Refuse an artifact that is not whole, as `read_artifact` does; any other ONNX file passes.

    Raises:
        ArtifactError: It is no ONNX file, or an artifact with a damaged manifest or another graph.
    """
    if MANIFEST_KEY in _described(content, source)[0]:
        read_artifact(content, source=source)


def _described(content: bytes, source: str) -> tuple[dict[str, str], str]:
    """Return the metadata of an ONNX file and the digest of all else.

    Raises:
        ArtifactError: It is none.
    """
    metadata: dict[str, str] = {}
    rest = hashlib.sha256()
    has_graph, since = False, 0
    view = memoryview(content)
    try:
        for field in _fields(view):
            if field.number == _METADATA:
                rest.update(view[since : field.begin])
                since = field.end
                pair = {part.number: str(part.content, "utf-8") for part in _fields(field.content)}
                metadata[pair.get(_KEY, "")] = pair.get(_VALUE, "")
            has_graph |= field.number == _GRAPH
    except ValueError:
        raise _unusable(source, "it is damaged or cut off") from None
    if not has_graph:
        raise _unusable(source, "it holds no graph")
    rest.update(view[since:])
    return metadata, f"sha256:{rest.hexdigest()}"


def _unusable(source: str, reason: str) -> ArtifactError:
    return ArtifactError(f"{source} is not a usable ONNX model: {reason}", hint="export it again")


def _fields(message: memoryview) -> Iterator[_Field]:
    """Yield the fields of a protobuf message.

    Raises:
        ValueError: It is none.
    """
    place = 0
    while place < len(message):
        begin = place
        tag, place = _varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            end = _varint(message, place)[1]
        elif kind == _LENGTH:
            length, place = _varint(message, place)
            end = place + length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            end = place + (8 if kind == _EIGHT_BYTES else 4)
        else:
            raise ValueError(f"wire type {kind}")
        if number == 0 or end > len(message):
            raise ValueError(f"field {number} ends at {end}")
        yield _Field(number, begin, message[place:end], end)
        place = end


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Return a number, 7 bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift, byte in enumerate(message[place : place + _MOST_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, place + shift + 1
    raise ValueError("a number without an end")
