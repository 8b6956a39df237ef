"""What a run would be, before it is one: sizes, and time from a few real updates whose state is thrown away.

The final refit (`[refit]`) is not measured: it needs the latents of a trained model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from kaem_train.config.settings import Config
from kaem_train.data import Dataset
from kaem_train.families.diffusion import Diffusion
from kaem_train.fitting.judge_split import Division, divide
from kaem_train.training.trainer import Trainer

_TIMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a run would be.

    Attributes:
        num_parameters: Trained numbers by part: `prior`, `generator`, and `encoder` where there is one.
        division: The images to train on, those that only judge the final refit, and those held out.
        update_seconds: Time of one update in each part of the run: it ends where the prior replaces the reference, and
            where a weighted bound begins to take its k draws. A part that the run never comes to is left out.
        start_seconds: Time of the prior's start at encoded images; 0 where there is none.
        total_seconds: Seconds of all updates; reports, sample grids, checkpoints, the final refit and the held-out
            bound come on top.
    """

    num_parameters: dict[str, int]
    division: Division
    update_seconds: tuple[float, ...]
    start_seconds: float
    total_seconds: float


def plan_run(config: Config, dataset: Dataset) -> DryRun:
    """Measure what a run would take; writes nothing.

    Args:
        config: Configuration of the run.
        dataset: Images enough for it (`check_trainable`).

    Raises:
        KaemError: The first updates give numbers that are not finite.
    """
    trainer = Trainer(config, dataset)
    updates, posterior = config.training.updates, config.posterior
    start = round(posterior.prior_from * updates) if posterior.has_encoder else 0
    starts = {start}
    if posterior.kind == "weighted_bound":
        starts.add(round(posterior.bound_from * updates))
    begins = [0, *sorted(step for step in starts if 0 < step < updates)]
    seconds, start_seconds = [], 0.0
    for begin in begins:
        trainer.step = begin
        clock = time.perf_counter()
        if begin and begin == start:
            trainer.update(None)
        with_start = time.perf_counter() - clock
        seconds.append(_time_update(trainer))
        if begin and begin == start:
            start_seconds = max(with_start - seconds[-1], 0.0)
    lengths = (end - begin for begin, end in pairwise([*begins, updates]))
    total = sum(length * each for length, each in zip(lengths, seconds, strict=True)) + start_seconds
    model = trainer.model
    parts = {"generator": model.generator, "encoder": trainer.posterior.network}
    if not isinstance(model, Diffusion):
        parts = {"prior": model.prior, **parts}
    counts = {name: _count(module) for name, module in parts.items()}
    return DryRun(
        num_parameters={name: count for name, count in counts.items() if count},
        division=divide(config, dataset),
        update_seconds=tuple(seconds),
        start_seconds=start_seconds,
        total_seconds=total,
    )


def _time_update(trainer: Trainer) -> float:
    """Return the median time of a few updates after one that warms up."""
    trainer.update(None)
    times = []
    for _ in range(_TIMED):
        begin = time.perf_counter()
        trainer.update(None)
        times.append(time.perf_counter() - begin)
    return sorted(times)[_TIMED // 2]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
