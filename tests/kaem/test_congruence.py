"""One suite over all samplers: what `kaem.load` does, `kaem.connect` and `kaem.connect_async` do, bit for bit."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import LiveServer

import kaem
from kaem import noise
from kaem.errors import RequestError
from kaem.sampler import Sampler
from kaem.validation import NUM_INDICES

SEEDS = st.integers(0, NUM_INDICES - 1)


@pytest.fixture(scope="module", params=["small", "rgb"])
def local(request, artifact_path, rgb_artifact_path):
    with kaem.load({"small": artifact_path, "rgb": rgb_artifact_path}[request.param]) as sampler:
        yield sampler


@pytest.fixture(scope="module")
def remote(local):
    # Small chunks, so that ordinary requests take several messages.
    with LiveServer(local, max_chunk_bytes=20_000) as live, kaem.connect(live.target) as sampler:
        yield sampler


@pytest.fixture(scope="module")
def shared(local):
    """Two servers that share every job."""
    with (
        LiveServer(local, max_chunk_bytes=20_000) as one,
        LiveServer(local, max_chunk_bytes=20_000) as two,
        kaem.connect([one.target, two.target]) as sampler,
    ):
        yield sampler


class InLoop:
    """An asynchronous sampler in an event loop of its own, with the methods of the others."""

    def __init__(self, target):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._sampler = self._do(self._connect(target))
        self.manifest = self._sampler.manifest
        self.numerics_id = self._sampler.numerics_id

    @staticmethod
    async def _connect(target):
        return await kaem.connect_async(target)

    def _do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def sample(self, *arguments, **options):
        return self._do(self._sampler.sample(*arguments, **options))

    def decode(self, uniform, **options):
        return self._do(self._sampler.decode(uniform, **options))

    def stream(self, *arguments, **options):
        return self._pull(self._sampler.stream(*arguments, **options))

    def _pull(self, chunks):
        try:
            while (chunk := self._do(anext(chunks, None))) is not None:
                yield chunk
        finally:
            self._do(chunks.aclose())

    def close(self):
        self._do(self._sampler.close())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def in_loop(local):
    with LiveServer(local, max_chunk_bytes=20_000) as live, InLoop(live.target) as sampler:
        yield sampler


@pytest.fixture(scope="module", params=["load", "connect", "connect to two", "connect_async"])
def sampler(request, local, remote, shared, in_loop):
    return {"load": local, "connect": remote, "connect to two": shared, "connect_async": in_loop}[request.param]


def test_all_are_samplers(sampler):
    assert isinstance(sampler, Sampler)


def test_progress_is_told_as_it_is_made(sampler):
    for draw in (
        sampler.sample,
        lambda *arguments, **options: list(sampler.stream(*arguments, **options)),
    ):
        seen = []
        draw(900, 3, 17, on_progress=lambda done, total, seen=seen: seen.append((done, total)))
        totals = {total for _, total in seen}
        done = [done for done, _ in seen]
        assert len(totals) == 1
        assert done == sorted(set(done))
        assert done[-1] == totals.pop()


def test_they_describe_the_same_model(local, remote):
    assert remote.manifest == local.manifest
    assert remote.numerics_id == local.numerics_id


def test_images_have_the_manifests_shape_and_type_and_are_the_callers_own(sampler):
    uniform = noise.uniforms(0, 0, 5, sampler.manifest.noise_dim)
    for images in (sampler.sample(5, 0), sampler.decode(uniform), next(iter(sampler.stream(5, 0))).images):
        assert (images.shape, images.dtype) == ((5, *sampler.manifest.image_shape), np.float32)
        images.fill(0)  # writable


def test_a_stream_is_in_order_and_complete(sampler):
    chunks = list(sampler.stream(1000, 3, 17))
    assert [chunk.start for chunk in chunks] == list(17 + np.cumsum([0] + [len(c.images) for c in chunks[:-1]]))
    np.testing.assert_array_equal(np.concatenate([chunk.images for chunk in chunks]), sampler.sample(1000, 3, 17))


def test_sampling_is_decoding_the_noise(sampler):
    uniform = noise.uniforms(9, 4, 700, sampler.manifest.noise_dim)
    np.testing.assert_array_equal(sampler.decode(uniform), sampler.sample(700, 9, 4))


def test_decode_takes_float64_and_plain_uniforms(local, remote):
    uniform = np.random.default_rng(0).uniform(0, 1, (50, local.manifest.noise_dim))
    np.testing.assert_array_equal(remote.decode(uniform), local.decode(uniform))


def test_the_last_indices_exist(local, remote):
    arguments = (300, NUM_INDICES - 1, NUM_INDICES - 300)
    np.testing.assert_array_equal(remote.sample(*arguments), local.sample(*arguments))


def test_numpy_integers_are_integers(local, remote):
    arguments = (np.int64(3), np.uint64(5), np.int32(2))
    np.testing.assert_array_equal(remote.sample(*arguments), local.sample(3, 5, 2))
    assert next(remote.stream(*arguments)).start == 2


@pytest.mark.parametrize(
    "arguments",
    [
        (np.uint8(200), 5, np.uint8(100)),
        (np.uint8(200), np.int8(5), np.uint64(2**63)),
        (np.int64(200), np.uint64(2**64 - 1), np.int32(2**31 - 1)),
        (np.array(200, np.int16), np.array(5), np.array(100, np.uint8)),
    ],
    ids=str,
)
def test_the_width_of_an_integer_does_not_matter(sampler, local, arguments):
    num, seed, start = map(int, arguments)
    expected = local.sample(num, seed, start)
    chunks = list(sampler.stream(*arguments))
    assert chunks[0].start == start
    np.testing.assert_array_equal(np.concatenate([chunk.images for chunk in chunks]), expected)
    np.testing.assert_array_equal(sampler.sample(*arguments), expected)


@given(seed=SEEDS, start=st.integers(0, NUM_INDICES - 1000), cuts=st.lists(st.integers(1, 120), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_any_split_of_a_request_gives_the_same_bits(local, remote, seed, start, cuts):
    expected = local.sample(sum(cuts), seed, start)
    first = start
    for cut in cuts:
        part = remote.sample(cut, seed, first)
        assert part.tobytes() == expected[first - start : first - start + cut].tobytes()
        first += cut
    streamed = b"".join(chunk.images.tobytes() for chunk in remote.stream(sum(cuts), seed, start))
    assert streamed == expected.tobytes()


@pytest.mark.parametrize(
    "arguments",
    [(0, 1), (-1, 1), (1, -1), (1, NUM_INDICES), (1, 1, -1), (2, 1, NUM_INDICES - 1), (1.5, 1), (1, "x"), (True, 1)],
    ids=str,
)
def test_the_same_requests_are_refused_with_the_same_words(local, remote, in_loop, arguments):
    messages = set()
    for sampler in (local, remote, in_loop):
        for method in (sampler.sample, sampler.stream):
            with pytest.raises(RequestError) as caught:
                method(*arguments)
            messages.add(str(caught.value))
    assert len(messages) == 1


@pytest.mark.parametrize(
    "uniform", [np.zeros((2, 99), np.float32), np.zeros(3, np.float32), np.zeros((0, 5)), "text", [[np.nan]]], ids=str
)
def test_the_same_uniforms_are_refused_with_the_same_words(local, remote, uniform):
    messages = set()
    for sampler in (local, remote):
        with pytest.raises(RequestError) as caught:
            sampler.decode(uniform)
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_more_than_fits_in_memory_is_refused_before_anything_is_computed(sampler):
    with pytest.raises(RequestError, match="stream them"):
        sampler.sample(1 << 60, 0)


def test_a_huge_stream_can_be_begun_and_left(sampler):
    stream = sampler.stream(NUM_INDICES, 0)
    assert next(stream).start == 0
    stream.close()


def test_a_closed_sampler_refuses(local, artifact_path):
    with LiveServer(local) as live, kaem.load(artifact_path) as one, kaem.connect(live.target) as other:
        for sampler in (one, other):
            sampler.close()
            sampler.close()
            with pytest.raises(RequestError, match="closed"):
                sampler.sample(1, 0)
            with pytest.raises(RequestError, match="closed"):
                sampler.decode(noise.uniforms(0, 0, 1, sampler.manifest.noise_dim))
