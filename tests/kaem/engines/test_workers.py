"""Threads that share a batch stay on their shares of the processors, and leave the caller's alone."""

from __future__ import annotations

import os
from threading import Barrier

import pytest

from kaem.engines.workers import by_core, row_workers

PROCESSORS = os.sched_getaffinity(0)


def _places(num):
    """Return the processors that each thread of a pool may use."""
    everybody = Barrier(num)

    def place(_):
        everybody.wait(timeout=30)  # so that no thread takes two turns
        return os.sched_getaffinity(0)

    with row_workers(num) as pool:
        return list(pool.map(place, range(num)))


@pytest.mark.skipif(len(PROCESSORS) < 2, reason="there is one processor")
@pytest.mark.parametrize("num", sorted({2, len(PROCESSORS)}))
def test_the_processors_are_dealt_out_between_the_threads(num):
    places = _places(num)
    assert set.union(*places) == PROCESSORS
    assert sum(map(len, places)) == len(PROCESSORS)
    assert os.sched_getaffinity(0) == PROCESSORS


@pytest.mark.parametrize("num", [1, len(PROCESSORS) + 1])
def test_one_thread_or_more_than_processors_go_anywhere(num):
    assert _places(num) == [PROCESSORS] * num


def test_processors_of_one_core_follow_each_other(tmp_path):
    for processor, siblings in enumerate(("0,4", "1,5", "2-3", "2-3", "0,4", "1,5", "")):
        folder = tmp_path / f"cpu{processor}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert by_core({5, 4, 3, 2, 1, 0}, tmp_path) == [0, 4, 1, 5, 2, 3]
    assert by_core({9, 6, 5, 1, 4}, tmp_path) == [4, 1, 5, 6, 9]  # 6 is described by nothing, and 9 nowhere
