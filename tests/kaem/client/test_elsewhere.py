"""Connected samplers where they cannot work: another event loop, a forked process, a pickle. Each says so at once."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle

import numpy as np
import pytest
from live_server import Backend, LiveServer, server_process

import kaem
from kaem import noise
from kaem.errors import RequestError

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_another_event_loop_is_refused():
    async def connect(target):
        return await kaem.connect_async(target)

    async def ask(sampler):
        for asking in (sampler.sample(1, 0), sampler.decode(noise.uniforms(0, 0, 1, 3))):
            with pytest.raises(RequestError, match="another event loop") as caught:
                await asking
            assert "connect_async" in caught.value.hint
        with pytest.raises(RequestError, match="another event loop"):
            sampler.stream(1, 0)
        await sampler.close()

    with LiveServer(Backend()) as live:
        sampler = asyncio.run(connect(live.target))
        asyncio.run(ask(sampler))


def test_connected_samplers_say_why_they_cannot_be_pickled():
    async def dump(target):
        async with kaem.connect_async(target) as sampler:
            pickle.dumps(sampler)

    with LiveServer(Backend()) as live, kaem.connect(live.target) as sampler:
        with pytest.raises(RequestError, match="cannot be pickled") as caught:
            pickle.dumps(sampler)
        assert "kaem.connect" in caught.value.hint
        with pytest.raises(RequestError, match="cannot be pickled"):
            asyncio.run(dump(live.target))


def test_a_forked_process_is_told_to_connect_by_itself_and_can(artifact_path):
    with server_process(artifact_path, "--port", "0") as server, kaem.connect(server.target) as sampler:
        expected = sampler.sample(600, 3)

        def child():
            for ask in (lambda: sampler.sample(1, 0), lambda: next(sampler.stream(1, 0))):
                with pytest.raises(RequestError, match="connected before this process was forked"):
                    ask()
            with kaem.connect(server.target) as own:
                os._exit(0 if np.array_equal(own.sample(600, 3), expected) else 1)

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(60)
        if process.is_alive():
            process.kill()
        assert process.exitcode == 0
        np.testing.assert_array_equal(sampler.sample(600, 3), expected)
