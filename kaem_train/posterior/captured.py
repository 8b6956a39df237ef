"""A step of chains recorded as one CUDA graph, so that a GPU runs its many small operations without waiting for Python.

What a graph does is fixed when it is recorded: it reads and writes the tensors that it saw. So state and noise are
copied in and out, parameters must keep their places, and nothing in the step may ask the device for a value.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from kaem_train.posterior.langevin import StepInfo, StepNoise
from kaem_train.posterior.power import ChainState

Step = Callable[[ChainState, StepNoise], tuple[ChainState, StepInfo]]

_WARMUP_STEPS = 2


class CapturedStep:
    """A step to be called like the one that it records.

    Args:
        step: Advances chains; of tensors on a GPU.
        state: A state of the shapes of those to come.
        noise: Likewise.
    """

    def __init__(self, step: Step, state: ChainState, noise: StepNoise) -> None:
        self._state = state.map(torch.clone)
        self._noise = StepNoise(normal=noise.normal.clone(), uniform=noise.uniform.clone())
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # libraries choose their algorithms, which a graph cannot hold
            for _ in range(_WARMUP_STEPS):
                step(self._state, self._noise)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._next, self._info = step(self._state, self._noise)

    def __call__(self, state: ChainState, noise: StepNoise) -> tuple[ChainState, StepInfo]:
        """Advance the chains by one step; see `langevin_step`."""
        self._state.overwrite(state)
        self._noise.normal.copy_(noise.normal)
        self._noise.uniform.copy_(noise.uniform)
        self._graph.replay()
        info = StepInfo(acceptance=self._info.acceptance.clone(), reflected=self._info.reflected.clone())
        return self._next.map(torch.clone), info
