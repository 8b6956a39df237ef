"""Samplers that are dropped without `close` warn as files do, once, and never where nobody could have closed them."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import subprocess
import sys
import warnings

import pytest
from live_server import Backend, LiveServer

import kaem
from kaem.client.asynchronous import AsyncRemoteSampler
from kaem.client.remote import RemoteSampler
from kaem.engines.cpu import LocalSampler
from kaem.errors import ArtifactError, RemoteError

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def warned_of(act):
    """Return what `act` and the collection of its garbage warn of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        act()
        gc.collect()
    return [str(warning.message) for warning in caught if warning.category is ResourceWarning]


@pytest.fixture(scope="module")
def live():
    with LiveServer(Backend()) as server:
        yield server


def words_of(live):
    return [f"unclosed sampler connected to {live.target.removeprefix('grpc://')}"]


def test_a_local_sampler_that_is_dropped_warns_once_and_one_that_is_closed_does_not(artifact_path):
    def use(*, is_closed):
        sampler = kaem.load(artifact_path, workers=1)
        sampler.sample(1, 0)
        if is_closed:
            sampler.close()

    assert warned_of(lambda: use(is_closed=False)) == [f"unclosed sampler of {artifact_path}"]
    assert warned_of(lambda: use(is_closed=True)) == []


def test_a_connected_sampler_that_is_dropped_warns_once_and_one_that_is_closed_does_not(live):
    def use(*, is_closed):
        sampler = kaem.connect(live.target)
        assert len(list(sampler.stream(3, 0))) >= 1
        if is_closed:
            sampler.close()

    assert warned_of(lambda: use(is_closed=False)) == words_of(live)
    assert warned_of(lambda: use(is_closed=True)) == []


def test_a_sampler_of_asyncio_that_is_dropped_warns_once_and_one_that_is_closed_does_not(live):
    async def use(*, is_closed):
        sampler = await kaem.connect_async(live.target)
        await sampler.sample(1, 0)
        if is_closed:
            await sampler.close()

    async def enter():
        async with kaem.connect_async(live.target) as sampler:
            await sampler.sample(1, 0)

    assert warned_of(lambda: asyncio.run(use(is_closed=False))) == words_of(live)
    assert warned_of(lambda: asyncio.run(use(is_closed=True))) == []
    assert warned_of(lambda: asyncio.run(enter())) == []


def test_a_stream_keeps_its_sampler_until_it_ends(artifact_path):
    def use():
        stream = kaem.load(artifact_path, workers=1).stream(10, 0)
        gc.collect()
        assert sum(len(chunk.images) for chunk in stream) == 10

    assert warned_of(use) == [f"unclosed sampler of {artifact_path}"]


def test_copies_in_pickles_and_forked_children_are_nobodys_to_close(artifact_path, live):
    with kaem.load(artifact_path, workers=1) as sampler, kaem.connect(live.target) as remote:

        def use_a_copy():
            copy = pickle.loads(pickle.dumps(sampler))  # noqa: S301
            copy.sample(1, 0)

        assert warned_of(use_a_copy) == []
        child = os.fork()
        if not child:
            code = 1
            try:
                sampler.sample(1, 0)
                code = len(warned_of(sampler.__del__) + warned_of(remote.__del__))
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_was_never_made_has_nothing_to_say(tmp_path):
    def fail():
        with pytest.raises(ArtifactError):
            kaem.load(tmp_path / "none.onnx")
        with pytest.raises(RemoteError):
            kaem.connect("127.0.0.1:1", timeout_s=0.05)
        for kind in (LocalSampler, RemoteSampler, AsyncRemoteSampler):
            kind.__new__(kind).__del__()

    assert warned_of(fail) == []


@pytest.mark.parametrize("place", ["sampler", "builtins.kept", "sys.modules['kept']"])
def test_a_sampler_that_is_left_to_the_end_of_the_interpreter_warns_and_does_not_fail(artifact_path, place):
    code = f"import builtins, sys, kaem\n{place} = kaem.load({str(artifact_path)!r}, workers=1)\n{place}.sample(1, 0)"
    done = subprocess.run(
        [sys.executable, "-W", "default::ResourceWarning", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0
    assert "Exception ignored" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count(f"ResourceWarning: unclosed sampler of {artifact_path}") == 1
    silent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert (silent.returncode, silent.stderr) == (0, "")
