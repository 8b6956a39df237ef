"""The process of one contestant: opens an engine, then takes turns when it is told to.

One contestant a process: its processor time and memory are then its own, its threads spin on nobody else's turn,
its thread settings are not another's, and its start can be timed from nothing (so nothing heavy is imported above).
The parent writes one JSON object a line to standard input and reads one from standard output; when the input ends,
so does the process.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kaem.errors import KaemError

if TYPE_CHECKING:
    from kaem.bench.scenarios.engines import BenchEngine

TURN_S = 0.05
"""Length of one turn: long against a context switch, short against the moods of a shared machine."""

SETTLE_SHARE = 0.1
"""A turn begins with one untimed call if calls take less than this share of it: caches hold the turn before."""

WARM_WINDOW_S = 0.02
MAX_WARM_S = 5.0


def main() -> None:
    """Open what the first argument says, then answer the parent until it closes the pipe."""
    began = time.monotonic()
    words = json.loads(sys.argv[1])
    spawned, module = float(words.pop("spawned")), str(words.pop("module"))
    with _answers() as out:
        try:
            engines = importlib.import_module("kaem.bench.scenarios.engines")
            opener = importlib.import_module(module)
            job = engines.EngineJob(**words)
            engines.require(job.engine)
            imported = time.monotonic()
            engine = opener.open_engine(job)
            loaded = time.monotonic()
            engine.sample(1, 0, 0)
            done = time.monotonic()
            times = {"start": began - spawned, "import": imported - began, "load": loaded - imported}
            times |= {"first_image": done - loaded, "total": done - spawned}
            _say(out, {"cold_s": times, "settings": dict(engine.settings)})
            for line in sys.stdin:
                _say(out, _answer(engine, json.loads(line)))
        except KaemError as error:
            _say(out, {"error": type(error).__name__, "message": error.message, "hint": error.hint})
        except MemoryError:
            _say(out, {"error": "BackendError", "message": "it needs more memory than there is", "hint": ""})
        except Exception as error:  # a library's own class; the parent says whose process it was
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
            _say(out, {"error": "BackendError", "message": reason, "hint": ""})


def _answer(engine: BenchEngine, request: dict[str, Any]) -> dict[str, Any]:
    match request["do"]:
        case "images":
            images = engine.sample(request["num"], request["seed"])
            data = base64.b64encode(images.tobytes()).decode()
            return {"images": data, "shape": images.shape, "type": str(images.dtype)}
        case "warm":
            return _warm(engine, request["batch"], request["seed"])
        case "turn":
            return _turn(engine, **{name: value for name, value in request.items() if name != "do"})
        case "peak":
            return {"peak_bytes": _peak_bytes()}
        case unknown:
            raise AssertionError(f"no request is named {unknown!r}")


def _turn(
    engine: BenchEngine, batch: int, seed: int, start: int, settle: bool, length_s: float = TURN_S
) -> dict[str, Any]:
    """Time whole calls until they have taken `length_s` together."""
    if settle:
        engine.sample(batch, seed, start)
        start += batch
    wall: list[float] = []
    cpu: list[float] = []
    spent = 0.0
    while spent < length_s:
        cpu_begin, begin = time.process_time(), time.perf_counter()
        engine.sample(batch, seed, start)
        end, cpu_end = time.perf_counter(), time.process_time()
        wall.append(1e3 * (end - begin))
        cpu.append(1e3 * (cpu_end - cpu_begin))
        spent += end - begin
        start += batch
    return {"wall_ms": wall, "cpu_ms": cpu, "next": start}


def _warm(engine: BenchEngine, batch: int, seed: int) -> dict[str, Any]:
    """Call until the times of windows of `WARM_WINDOW_S` have settled, or for `MAX_WARM_S` after the first window."""
    from kaem.bench.statistics import is_warm

    medians: list[float] = []
    calls, spent, start = 0, 0.0, 0
    while not is_warm(medians) and (spent < MAX_WARM_S or calls < 2):
        turn = _turn(engine, batch, seed, start, settle=False, length_s=WARM_WINDOW_S)
        start = turn["next"]
        medians.append(statistics.median(turn["wall_ms"]))
        calls += len(turn["wall_ms"])
        spent += sum(turn["wall_ms"]) / 1e3 if len(medians) > 1 else 0.0  # the first may compile for a minute
    return {"calls": calls, "is_settled": is_warm(medians), "typical_s": medians[-1] / 1e3}


def _peak_bytes() -> int:
    """Largest resident memory so far. Not getrusage: its maximum outlives exec and may be the parent's."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0


@contextlib.contextmanager
def _answers() -> Iterator[TextIO]:
    """Keep standard output for answers; what libraries print there goes to standard error."""
    private = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(private, "w", encoding="utf-8") as out:
        yield out


def _say(out: TextIO, answer: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
