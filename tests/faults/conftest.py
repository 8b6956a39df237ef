"""Real server processes with their metrics, and a place to say what a test saw: it is printed after the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from live_server import ServerProcess, free_port, server_process
from scraping import Scrape


@dataclass
class Monitored:
    """A server process and where its metrics are."""

    server: ServerProcess
    http_address: str

    @property
    def address(self) -> str:
        return self.server.target.removeprefix("grpc://")

    def metric(self, name: str, **labels: str) -> float:
        return Scrape(self.http_address)(name, **labels)


@pytest.fixture(scope="module")
def monitored(artifact_path) -> Iterator[Monitored]:
    port = free_port()
    # Tests begin hundreds of calls in one instant and mean all of them.
    options = ("--port", "0", "--http-port", str(port), "--max-pending-calls", "4096")
    with server_process(artifact_path, *options) as server:
        yield Monitored(server, f"http://127.0.0.1:{port}")


@pytest.fixture
def saw(record_property) -> Callable[[str], None]:
    """Note what happened, with its figures; figures of time are for reading, not for asserting."""
    return lambda text: record_property("saw", text)
