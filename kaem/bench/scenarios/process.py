"""The parent's end of a contestant's process: start it, ask it, end it."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from kaem import errors
from kaem.bench.scenarios.engines import EngineJob
from kaem.errors import BackendError, KaemError
from kaem.sampler import Images

OWN_ENGINES = "kaem.bench.scenarios.engines"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A model on an engine, as it takes part in a comparison.

    Attributes:
        job: What to open.
        module: Whose `open_engine` opens it; one of a floor above where the engine needs torch.
    """

    job: EngineJob
    module: str = OWN_ENGINES


class Process:
    """A running contestant.

    Args:
        contestant: Which.

    Raises:
        KaemError: What the process says is wrong with the job.
    """

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        words = {**asdict(contestant.job), "module": contestant.module, "spawned": time.monotonic()}
        self._process = subprocess.Popen(  # noqa: S603  (our own interpreter, our own module)
            [sys.executable, "-P", "-m", "kaem.bench.scenarios.worker", json.dumps(words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            ready = self._read()
        except BaseException:
            self.close()
            raise
        self.cold_s: dict[str, float] = ready["cold_s"]
        self.settings: dict[str, str] = ready["settings"]

    @property
    def has_own_noise(self) -> bool:
        """Whether its images are not those of (seed, index), so that they cannot be compared with others'."""
        return "noise" in self.settings

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        """Let the process do something and return what it answers.

        Raises:
            KaemError: It failed, or ended.
        """
        if self._process.stdin is None:
            raise AssertionError("the process was opened without a pipe")
        try:
            self._process.stdin.write(json.dumps({"do": do, **words}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and reading says how
        return self._read()

    def images(self, num: int, seed: int) -> Images:
        """Return samples 0 .. num - 1 of a seed."""
        answer = self.ask("images", num=num, seed=seed)
        data = base64.b64decode(answer["images"])
        return np.frombuffer(data, np.dtype(answer["type"])).reshape(answer["shape"])

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what was left unsent to a process that has ended
                    pipe.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise AssertionError("the process was opened without a pipe")
        job = self.contestant.job
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
            raise BackendError(f"{job.engine} on {job.source}: its process {how}", hint="is there enough memory?")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            cls: type[KaemError] = getattr(errors, answer["error"])
            message: str = answer["message"]
            where = "" if job.source in message else f" on {job.source}"
            raise cls(
                message if message.startswith("engine ") else f"{job.engine}{where}: {message}", hint=answer["hint"]
            )
        return answer
