"""Which images to train on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kaem.errors import ConfigError
from kaem_train.config.checks import require_at_least, require_at_most


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which images to train on.

    Attributes:
        source: `digits` is the set of real handwritten digits embedded in scikit-learn; `files` reads `path`;
            `latents` stands where no images were seen, in checkpoints of `kaem fit-prior`.
        path: A file, folder or archive, or `hf:OWNER/NAME`; its kind is told from what it is; `files` only.
        image_shape: (C, H, W) of one image; data of another shape is refused unless the next three say how to fit it.
        column: Image column of a Hugging Face data set; "" for the only one, or the one called `image` or `img`.
        crop: Side in pixels of the square that is cut from the centre of every image; 0 cuts nothing.
        resize: Antialiasing filter with which images become H x W after the crop: `lanczos`, `box`, or `none`.
        convert_colour: Convert between grey and RGB where the images' channels are not C.
        num_train: Train on the first so many images only; 0 takes all.
        num_holdout: Images held out for evaluation where the files bring no test split of their own.
        augment_flip: Mirror every training image left to right with probability one half.
    """

    source: Literal["digits", "files", "latents"]
    path: str = ""
    image_shape: tuple[int, ...]
    column: str = ""
    crop: int = 0
    resize: Literal["none", "lanczos", "box"] = "none"
    convert_colour: bool = False
    num_train: int = 0
    num_holdout: int = 297
    augment_flip: bool = False

    def __post_init__(self) -> None:
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise ConfigError(
                f"image_shape = {list(self.image_shape)} is not [channels, height, width]",
                hint="write for example image_shape = [1, 28, 28]",
            )
        require_at_least("num_train", self.num_train, 0)
        for name, size, most in zip(("channels", "height", "width"), self.image_shape, (16, 4096, 4096), strict=True):
            require_at_most(f"image_shape's {name}", size, most)
        require_at_least("num_holdout", self.num_holdout, 1)
        require_at_least("crop", self.crop, 0)
        if self.crop and self.resize == "none" and self.image_shape[1:] != (self.crop, self.crop):
            raise ConfigError(
                f"crop = {self.crop} does not give the height and width of image_shape = {list(self.image_shape)}",
                hint="set data.resize=lanczos, or make them equal",
            )
        if self.source != "files" and self.path:
            raise ConfigError(
                f"path = {self.path!r} is not used by source = {self.source!r}, which reads no files",
                hint="leave the path out, or set data.source=files",
            )

    @property
    def changes_images(self) -> bool:
        """Whether images may be cropped, resized or converted on their way in."""
        return self.crop > 0 or self.resize != "none" or self.convert_colour
