"""What a server and a worker process say to each other."""

from __future__ import annotations

import os
import socket

import pytest

from kaem.artifact import Manifest
from serve.devices.devices import Device
from serve.devices.worker_channel import DONE, BrokenLinkError, Slot, receive_pair, receive_text, send_pair, send_text
from serve.devices.worker_process import ModelMemory, Worker


@pytest.mark.parametrize(("capacity", "rows"), [(4, 0), (4, 5), (0, 1), (1 << 20, 1)])
def test_a_worker_that_is_asked_for_rows_that_are_not_there_leaves(artifact_path, capacity, rows):
    model = ModelMemory(artifact_path, artifact_path.read_bytes())
    worker = Worker(model, Device("cpu"), 1)
    try:
        worker.greet()
        worker._slot.grow(4)
        send_pair(worker._link, capacity, rows)
        assert worker.process.wait(timeout=30) == 0
    finally:
        worker.end()
        worker.release()
        model.close()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is gone"),
        (b"\1\0\0\0", "is gone"),
        (b"\0\0\0\0\xff\xff\xff\xff", "4294967295 bytes is announced"),
        (b"\0\0\0\0\2\0\0\0ab", "JSON"),
        (b"\0\0\0\0\2\0\0\0[]", "object"),
    ],
)
def test_what_is_no_answer_is_refused(content, what):
    mine, theirs = socket.socketpair()
    with mine:
        with theirs:
            theirs.sendall(content)
        with pytest.raises(BrokenLinkError, match=what):
            receive_text(mine, receive_pair(mine)[1])


def test_what_is_sent_is_what_is_received():
    mine, theirs = socket.socketpair()
    with mine, theirs:
        send_text(mine, DONE, {"name": "größe", "size": [1, 2]})
        assert receive_pair(theirs)[0] == DONE
        theirs.settimeout(5)
    manifest = Manifest(family="kaem", name="x", noise_dim=3, latent_dim=3, image_shape=(1, 2, 5))
    file = os.memfd_create("test")
    try:
        one, other = Slot(file, manifest), Slot(file, manifest)
        for rows in (1, 7, 3, 100):
            one.grow(rows)
            other.map(one.capacity)
            one.uniform[:], one.images[:] = rows, -rows
            assert (other.uniform == rows).all()
            assert (other.images == -rows).all()
        assert one.capacity == 100
        with pytest.raises(BrokenLinkError, match="does not hold 101 rows"):
            other.map(101)
    finally:
        os.close(file)
