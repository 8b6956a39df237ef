"""Samplers in other processes: forked while threads compute, or told by a pickle. They work or say why; none hangs."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import threading

import numpy as np
import pytest

import kaem
from kaem.errors import ArtifactError, RequestError

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

LIMIT_S = 60
SAMPLER = None


def draw(seed):
    return SAMPLER.sample(600, seed)


def draw_with(sampler, seed):
    return sampler.sample(600, seed)


def take(sampler):
    global SAMPLER  # noqa: PLW0603  # as initialisers of pools do
    SAMPLER = sampler


@pytest.fixture
def sampler(artifact_path):
    global SAMPLER  # noqa: PLW0603
    with kaem.load(artifact_path, workers=2) as SAMPLER:
        SAMPLER.sample(600, 0)  # its threads have started
        yield SAMPLER
    SAMPLER = None


def test_a_sampler_works_on_in_forked_processes_while_its_threads_compute(sampler):
    is_over = threading.Event()

    def compute():
        while not is_over.is_set():
            sampler.sample(600, 1)

    computing = [threading.Thread(target=compute) for _ in range(2)]
    for thread in computing:
        thread.start()
    try:
        for _ in range(3):
            with multiprocessing.get_context("fork").Pool(2) as pool:
                drawn = pool.map_async(draw, range(4)).get(LIMIT_S)
            for seed, images in enumerate(drawn):
                np.testing.assert_array_equal(images, sampler.sample(600, seed))
    finally:
        is_over.set()
        for thread in computing:
            thread.join()


def test_a_child_of_a_child_works_too_and_parents_go_on(sampler):
    def answers(depth):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            code = 1
            try:
                images = sampler.sample(600, depth)
                code = 0 if depth == 2 or answers(depth + 1) else 1
                os.write(write, images[:1].tobytes())
            finally:
                os._exit(code)
        os.close(write)
        with os.fdopen(read, "rb") as file:
            first = file.read()
        return os.waitpid(child, 0)[1] == 0 and first == sampler.sample(1, depth).tobytes()

    assert answers(1)
    assert len(sampler.sample(600, 3)) == 600


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_samplers_travel_in_pickles(sampler, method):
    with multiprocessing.get_context(method).Pool(1, initializer=take, initargs=(sampler,)) as pool:
        drawn = pool.apply_async(draw_with, (sampler, 5)).get(LIMIT_S)
    np.testing.assert_array_equal(drawn, sampler.sample(600, 5))


def test_a_pickle_is_small_and_says_what_it_samples_from(sampler, artifact_path, monkeypatch, tmp_path):
    text = pickle.dumps(sampler)
    assert len(text) < artifact_path.stat().st_size
    monkeypatch.chdir(tmp_path)
    with pickle.loads(text) as copy:  # noqa: S301
        assert (copy.manifest, copy.numerics_id) == (sampler.manifest, sampler.numerics_id)
        np.testing.assert_array_equal(copy.sample(5, 7), sampler.sample(5, 7))


def test_another_file_under_the_same_name_is_refused(artifact_path, rgb_artifact_path, tmp_path):
    path = shutil.copy(artifact_path, tmp_path / "m.onnx")
    with kaem.load(path) as sampler:
        copy = pickle.loads(pickle.dumps(sampler))  # noqa: S301
        shutil.copy(rgb_artifact_path, path)
        for _ in range(2):
            with pytest.raises(ArtifactError, match="has changed since this sampler was loaded"):
                copy.sample(1, 0)
        assert len(sampler.sample(1, 0)) == 1


def test_a_closed_sampler_stays_closed_wherever_it_goes(artifact_path):
    sampler = kaem.load(artifact_path)
    sampler.close()
    with pytest.raises(RequestError, match="closed"):
        pickle.loads(pickle.dumps(sampler)).sample(1, 0)  # noqa: S301
