"""Signals that wait for the end of what must not be interrupted."""

from __future__ import annotations

import signal

import pytest

from kaem_train.training.interrupt import hold_signals_back


def test_a_signal_is_kept_for_the_end_of_the_block_and_then_means_what_it_did():
    done = []
    former = signal.signal(signal.SIGTERM, lambda number, _: done.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), hold_signals_back():
            signal.raise_signal(signal.SIGINT)
            done.append("block")
        with hold_signals_back():
            signal.raise_signal(signal.SIGTERM)
            done.append("block")
        with hold_signals_back():
            done.append("quiet")
    finally:
        signal.signal(signal.SIGTERM, former)
    assert done == ["block", "block", signal.SIGTERM, "quiet"]


def test_who_insists_is_not_kept():
    with pytest.raises(KeyboardInterrupt), hold_signals_back():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it goes on")
