"""Wrong tokens are answered late, right ones are not, whoever guesses beside them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from live_server import Backend, LiveServer, stub_of

from kaem.protocol.kaem_pb2 import SampleRequest
from serve.calls import auth
from serve.calls.auth import Guesses


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


TOKEN = "alice-" + "a" * 26


def test_an_address_pays_a_second_for_each_guess_beyond_a_few():
    clock = Clock()
    book = Guesses(clock)
    delays = [book.delay_s(f"ipv4:10.0.0.1:{port}") for port in range(50)]
    assert delays[:6] == [0, 0, 0, 0, 0, 1]
    assert delays[5:35] == [float(n) for n in range(1, 31)]
    assert set(delays[35:]) == {30.0}
    assert book.delay_s("ipv4:10.0.0.2:1") == 0
    clock.now += 1000
    assert book.delay_s("ipv4:10.0.0.1:1") == 0


def test_over_time_an_address_learns_of_one_guess_a_second_and_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(auth, "_MOST_ADDRESSES", 10)
    clock = Clock()
    book = Guesses(clock)
    answered = 0
    for _ in range(500):  # guesses again as soon as it is told
        clock.now += book.delay_s("ipv4:10.0.0.1:1")
        answered += 1
    assert clock.now >= answered - 6
    for number in range(1000):
        book.delay_s(f"ipv6:[{number:x}::1]:1")
    assert len(book._paid_at) <= 10


def _code(stub, token):
    try:
        stub.Sample(SampleRequest(count=1), timeout=60, metadata=(("authorization", f"Bearer {token}"),))
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


@pytest.mark.parametrize("way", ["one after the other", "side by side"])
def test_guesses_are_slowed_and_calls_with_a_token_are_not(tmp_path, monkeypatch, way):
    monkeypatch.setattr(auth, "_COST_S", 0.2)
    path = tmp_path / "tokens"
    path.write_text(f"alice {TOKEN}\n")
    with (
        LiveServer(Backend(), token_file=str(path)) as live,
        stub_of(live.address) as stub,
        ThreadPoolExecutor(20) as pool,
    ):
        began = time.monotonic()
        guessing = [pool.submit(_code, stub, f"{TOKEN}{n}") for n in range(15 if way == "side by side" else 1)]
        if way == "one after the other":
            guessing[0].result()
            guessing += [pool.submit(lambda: [_code(stub, "wrong" * 8) for _ in range(14)][-1])]
        known = [_code(stub, TOKEN) for _ in range(50)]
        assert not all(guess.done() for guess in guessing)  # those with a token were answered meanwhile
        assert set(known) == {"OK"}
        assert {guess.result() for guess in guessing} == {"UNAUTHENTICATED"}
        assert time.monotonic() - began >= 10 * 0.2 - 0.05


def test_who_shows_no_token_has_guessed_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(auth, "_FREE", 0)
    monkeypatch.setattr(auth, "_COST_S", 1000.0)
    path = tmp_path / "tokens"
    path.write_text(f"alice {TOKEN}\n")
    with LiveServer(Backend(), token_file=str(path)) as live, stub_of(live.address) as stub:
        for _ in range(20):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Sample(SampleRequest(count=1), timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
