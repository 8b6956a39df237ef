"""What is measured, and on how many images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kaem.errors import RequestError
from kaem_train.config.checks import require_device
from kaem_train.evaluation.extrapolation import require_sizes

Split = Literal["train", "test", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """How to evaluate.

    Attributes:
        features: `auto`, `classifier`, `inception`, or the path of an .onnx file. `auto` is the classifier for
            grey images of at most 32 x 32 with labels, else the Inception network.
        real: The real images to compare with: `test` (held out), `train`, or `all` of both.
        num_real: At most so many of them, chosen once and for all; None takes all.
        num: Images to generate; None is 10,000, or 2,000 where the Inception network looks at them.
        sizes: Numbers of images from which figures are extrapolated; None is num/10, 2 num/10, ..., num.
        seed: Seed of samples, subsets and posterior draws.
        with_floors: Also measure real training images and reconstructions, which triples the images that the
            feature network sees.
        device: Device of the model and of the Inception network; see `kaem_train.devices.choose_device`.
    """

    features: str = "auto"
    real: Split = "test"
    num_real: int | None = None
    num: int | None = None
    sizes: tuple[int, ...] | None = None
    seed: int = 0
    with_floors: bool = True
    device: str = "auto"

    def __post_init__(self) -> None:
        require_device("--device", self.device)
        for name, least in (("num", 10), ("num_real", 5)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RequestError(f"--{name.replace('_', '-')} is {value}; at least {least} are needed")
        if not 0 <= self.seed < 2**63:
            raise RequestError(f"seed {self.seed} is outside [0, 2^63)")
        if self.sizes is not None:
            require_sizes(self.sizes)
            if self.num is not None and max(self.sizes) > self.num:
                raise RequestError(
                    f"--sizes asks for {max(self.sizes)} images, --num generates {self.num}", hint="raise --num"
                )
