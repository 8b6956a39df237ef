"""What only asyncio has: cancelling, many requests in one loop, and the life of a connection."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, aclosing

import grpc
import numpy as np
import pytest
from live_server import Backend, LiveServer, free_port
from scripted_server import QUICK, Script, Scripted, fail, right

import kaem
from kaem import noise
from kaem.client import Hedging
from kaem.errors import ConfigError, RemoteError, RequestError

UNAVAILABLE, CANCELLED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED


async def gather(stream):
    return np.concatenate([chunk.images async for chunk in stream])


@pytest.mark.parametrize("code", [UNAVAILABLE, CANCELLED])
def test_broken_calls_are_resumed_and_repeated(code):
    servicer = Scripted(fail(code, after=3), fail(code, after=0), fail(code, after=1), None, fail(code))

    async def ask(address):
        async with kaem.connect_async(address, patience=QUICK) as sampler:
            return await gather(sampler.stream(100, 7, 5)), await sampler.sample(50, 7), await sampler.sample(500, 7)

    with Script(servicer=servicer) as (blocking, _):
        streamed, small, large = asyncio.run(ask(blocking._plan.targets[0].address))
    np.testing.assert_array_equal(streamed, right(100, start=5))
    np.testing.assert_array_equal(small, right(50))
    np.testing.assert_array_equal(large, right(500))
    assert [r.start_index for r in servicer.requests] == [5, 35, 35, 45, 0, 0, 0]


def test_a_hedge_takes_the_first_answer_and_cancels_the_other():
    slow, quick = Backend(), Backend()

    async def ask(targets):
        async with kaem.connect_async(targets, hedging=Hedging(after_s=0.02)) as sampler:
            slow.may_run.clear()
            return [await sampler.sample(num, 7) for num in (4, 4, 500)]

    with LiveServer(slow) as one, LiveServer(quick) as two:
        for images in asyncio.run(ask([one.target, two.target])):
            np.testing.assert_array_equal(images, quick.decode(noise.uniforms(7, 0, len(images), 3)))
        slow.may_run.set()
        assert one.run(one.server.gate.wait_empty(10))


def test_a_hedge_demands_the_same_bits():
    """Of two servers the slow one is as it was, and on the other's port there is one of another numerics id."""
    slow, port = Backend(), free_port()

    async def ask(targets):
        async with kaem.connect_async(targets, hedging=Hedging(after_s=0.02), patience=QUICK) as sampler:
            before.close()
            with LiveServer(Backend(name="other"), port=port, name="fake") as other:
                slow.may_run.clear()
                asking = asyncio.create_task(sampler.sample(4, 7))
                ended = other.server.observer.ended
                while not any(code == "FAILED_PRECONDITION" for _, code in ended):
                    await asyncio.sleep(0.005)
                slow.may_run.set()
                try:
                    return await asking
                finally:
                    assert not [code for name, code in ended if name.endswith("Sample") and code == "OK"]

    with LiveServer(slow) as one, ExitStack() as before:
        two = before.enter_context(LiveServer(Backend(), port=port))
        images = asyncio.run(ask([one.target, two.target]))
        np.testing.assert_array_equal(images, slow.decode(noise.uniforms(7, 0, 4, 3)))


def test_many_requests_share_a_loop():
    async def ask(target):
        async with kaem.connect_async(target) as sampler:
            return await asyncio.gather(*(sampler.sample(20, seed) for seed in range(64)))

    with LiveServer(Backend()) as live:
        for seed, images in enumerate(asyncio.run(ask(live.target))):
            np.testing.assert_array_equal(images, live.backend.decode(noise.uniforms(seed, 0, 20, 3)))


@pytest.mark.parametrize("how", ["leave", "cancel"])
def test_leaving_or_cancelling_ends_the_call(how):
    async def ask(target):
        async with kaem.connect_async(target) as sampler:
            if how == "leave":
                async with aclosing(sampler.stream(10**12, 0)) as stream:
                    await anext(stream)
            else:
                task = asyncio.create_task(gather(sampler.stream(10**12, 0)))
                await asyncio.sleep(0.05)  # so that it is really in the middle; nothing depends on how long
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            return await asyncio.to_thread(lambda: live.run(live.server.gate.wait_empty(10)))

    with LiveServer(Backend()) as live:
        assert asyncio.run(ask(live.target))


def test_closing_in_the_middle_of_a_stream_ends_it():
    async def ask(address):
        sampler = await kaem.connect_async(address)
        stream = sampler.stream(10_000, 7)
        await anext(stream)
        await sampler.close()
        with pytest.raises(RequestError, match="closed"):
            await gather(stream)
        with pytest.raises(RequestError, match="closed"):
            await sampler.sample(1, 0)

    with Script() as (blocking, _):
        asyncio.run(ask(blocking._plan.targets[0].address))


def test_what_cannot_be_connected_to_is_said():
    async def ask(targets, **options):
        async with kaem.connect_async(targets, **options):
            raise AssertionError

    with pytest.raises(RemoteError, match=r"no kaem server answered .* within 0\.3 s"):
        asyncio.run(ask(f"127.0.0.1:{free_port()}", timeout_s=0.3))
    with pytest.raises(ConfigError, match="as the address of a server"):
        kaem.connect_async("nowhere")
    with (
        LiveServer(Backend(name="one")) as one,
        LiveServer(Backend(name="two")) as two,
        pytest.raises(ConfigError, match="do not compute the same bits"),
    ):
        asyncio.run(ask([one.target, two.target]))


def test_a_server_that_is_not_there_yet_does_not_hold_up_the_others():
    async def ask(targets):
        async with kaem.connect_async(targets) as sampler:
            return await sampler.sample(700, 7)

    with LiveServer(Backend()) as live:
        images = asyncio.run(ask([f"127.0.0.1:{free_port()}", live.target]))
        np.testing.assert_array_equal(images, live.backend.decode(noise.uniforms(7, 0, 700, 3)))
