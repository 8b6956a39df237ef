"""What a user may ask of a compilation, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kaem.errors import ConfigError

Level = Literal["none", "default", "large-batch", "auto"]
Precision = Literal["float32", "float16", "int8"]

MOST_BATCH = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a graph is made fast.

    Attributes:
        optimize: `none` leaves the graph as torch exports it; `default` applies the exact rewrites; `large-batch` adds
            a second form of the convolutions, with fewer products, that runs from 16 rows on and makes the file about
            four times as large; `auto` measures on this machine whether and from how many rows on that form pays.
        precision: Arithmetic of the generator; the prior is always computed in float32. `float16` is for GPUs,
            `int8` for CPUs, and is refused where it costs more accuracy than `int8.LEAST_PSNR`.
        batch: Batch sizes that the artifact will be called with, ascending; empty for any. With one, it is the
            graph's fixed shape; with several, whoever runs the graph pads to the next larger one.
        branches: Whether the graph may choose between two forms by its number of rows; TensorRT wants none.
    """

    optimize: Level = "default"
    precision: Precision = "float32"
    batch: tuple[int, ...] = ()
    branches: bool = True

    def __post_init__(self) -> None:
        if any(not 1 <= size <= MOST_BATCH for size in self.batch):
            raise ConfigError(f"batch = {list(self.batch)} holds a size outside 1 .. {MOST_BATCH}")
        if list(self.batch) != sorted({*self.batch}):
            raise ConfigError(
                f"batch = {list(self.batch)} is not ascending", hint="name every size once, smallest first"
            )
        if self.precision != "float32" and self.optimize == "none":
            raise ConfigError(
                f"precision {self.precision} needs the exact rewrites", hint="leave --optimize none out, or use float32"
            )
        if self.precision != "float32" and self.optimize == "large-batch":
            raise ConfigError(
                f"the large-batch form is float32 alone, not {self.precision}", hint="use --optimize default"
            )


def parse_batch(text: str) -> tuple[int, ...]:
    """Read `64` or `1,8,64`; an empty text means any size.

    Raises:
        ConfigError: It is not a list of whole numbers.
    """
    try:
        return tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise ConfigError(
            f"batch {text!r} is not a list of whole numbers", hint="write --batch 64 or --batch 1,8,64"
        ) from None
