"""A batch's way between a server and a worker process: rows through shared memory, two numbers through a socket.

The memory is an anonymous file that only these two processes have open: it has no name that could be left behind, and
it holds one batch, since a worker computes one at a time. Nothing is pickled, and sizes are checked on both sides.

    server -> worker    rows the memory holds, rows of this batch               2 x uint32
    worker -> server    DONE, rows of the batch                                 2 x uint32
                        READY or FAILED, length of the text; then JSON          2 x uint32, bytes
"""

from __future__ import annotations

import json
import math
import mmap
import os
import socket
import struct
from typing import Any

import numpy as np

from kaem.artifact import Manifest
from kaem.sampler import Images, Uniforms

READY, DONE, FAILED = 0, 1, 2
MOST_ROWS = 1 << 16
"""Rows of the largest batch that a server can be told to compute."""

_MOST_TEXT_BYTES = 64 << 20  # a manifest with the densities of every latent is far below
_PAIR = struct.Struct("<II")
_ALIGNMENT = 64


class BrokenLinkError(Exception):
    """The other side is gone, or does not keep to the protocol."""


class SilentLinkError(BrokenLinkError):
    """The other side is there, and neither reads nor answers."""


class Slot:
    """Shared memory for the uniforms and the images of one batch.

    Args:
        file: Descriptor of an anonymous file; it stays the caller's.
        manifest: Manifest of the model.

    Attributes:
        capacity: Rows that are mapped.
        uniform: Shape (capacity, D).
        images: Shape (capacity, C, H, W).
    """

    def __init__(self, file: int, manifest: Manifest) -> None:
        self._file = file
        self._manifest = manifest
        self.capacity = 0
        self.uniform: Uniforms = np.empty((0, manifest.noise_dim), np.float32)
        self.images: Images = np.empty((0, *manifest.image_shape), manifest.image_type)

    def grow(self, rows: int) -> None:
        """Make room for `rows` rows, the server's side; the memory never shrinks."""
        if rows > self.capacity:
            os.ftruncate(self._file, self._layout(rows)[1])
            self.map(rows)

    def map(self, rows: int) -> None:
        """Look at the memory as `rows` rows.

        Raises:
            BrokenLinkError: It is smaller than that.
        """
        if rows == self.capacity:
            return
        offset, size = self._layout(rows)
        if not 1 <= rows <= MOST_ROWS or os.fstat(self._file).st_size < size:
            raise BrokenLinkError(f"the shared memory does not hold {rows} rows")
        memory = mmap.mmap(self._file, size)  # lives as long as the arrays below
        dim, shape = self._manifest.noise_dim, (rows, *self._manifest.image_shape)
        self.uniform = np.frombuffer(memory, np.float32, rows * dim).reshape(rows, dim)
        self.images = np.frombuffer(memory, self._manifest.image_type, math.prod(shape), offset).reshape(shape)
        self.capacity = rows

    def _layout(self, rows: int) -> tuple[int, int]:
        """Return where images begin and where all ends, in bytes."""
        offset = -(-4 * rows * self._manifest.noise_dim // _ALIGNMENT) * _ALIGNMENT
        return offset, offset + rows * self._manifest.image_bytes


def send_pair(link: socket.socket, first: int, second: int) -> None:
    """Send two numbers.

    Raises:
        BrokenLinkError: The other side is gone.
    """
    _send(link, _PAIR.pack(first, second))


def send_text(link: socket.socket, kind: int, content: dict[str, Any]) -> None:
    """Send READY or FAILED and what there is to say.

    Raises:
        BrokenLinkError: The other side is gone.
    """
    text = json.dumps(content).encode()
    _send(link, _PAIR.pack(kind, len(text)) + text)


def receive_pair(link: socket.socket) -> tuple[int, int]:
    """Return two numbers.

    Raises:
        BrokenLinkError: The other side is gone, or silent for longer than the socket's timeout.
    """
    first, second = _PAIR.unpack(_receive(link, _PAIR.size))
    return first, second


def receive_text(link: socket.socket, length: int) -> dict[str, Any]:
    """Return what was sent by `send_text`, after its two numbers.

    Raises:
        BrokenLinkError: The other side is gone, or this is not what it would send.
    """
    if length > _MOST_TEXT_BYTES:
        raise BrokenLinkError(f"a text of {length} bytes is announced")
    try:
        content = json.loads(_receive(link, length))
    except (ValueError, RecursionError):
        raise BrokenLinkError("what should be JSON is not") from None
    if not isinstance(content, dict):
        raise BrokenLinkError("what should be an object is not")
    return content


def _send(link: socket.socket, content: bytes) -> None:
    try:
        link.sendall(content)
    except TimeoutError:
        raise SilentLinkError("it does not read") from None
    except OSError as error:
        raise BrokenLinkError(error.strerror or str(error)) from None


def _receive(link: socket.socket, length: int) -> bytes:
    content = bytearray()
    while len(content) < length:
        try:
            part = link.recv(min(length - len(content), 1 << 20))
        except TimeoutError:
            raise SilentLinkError("it does not answer") from None
        except OSError as error:
            raise BrokenLinkError(error.strerror or str(error)) from None
        if not part:
            raise BrokenLinkError("it is gone")
        content += part
    return bytes(content)
