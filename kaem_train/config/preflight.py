"""What a command is given, looked at before torch is loaded: a wrong path is answered at once."""

from __future__ import annotations

import zipfile
from pathlib import Path

from kaem.errors import ArtifactError, DataError
from kaem_train.config import DataConfig

CHECKPOINT_NAME = "ckpt.pt"
"""Of the checkpoint in a run's folder."""

HUB_PREFIX = "hf:"
"""Of a data set of the Hugging Face hub."""


def require_checkpoint(path: Path) -> None:
    """Refuse what `torch.save` has not written.

    Raises:
        ArtifactError: There is no file at `path`, or it is no zip archive.
    """
    if not path.is_file():
        raise ArtifactError(f"no checkpoint at {path}", hint="train one with: kaem train digits")
    if not zipfile.is_zipfile(path):
        raise damaged_checkpoint(path)


def damaged_checkpoint(path: Path) -> ArtifactError:
    """Return the error of a file that is no checkpoint."""
    return ArtifactError(
        f"{path} is not a kaem checkpoint, or it is damaged",
        hint="give the ckpt.pt that kaem train wrote",
    )


def require_data(config: DataConfig) -> None:
    """Refuse images that are not there; what they are is for `load_dataset` to find out.

    Raises:
        DataError: The configuration has none, needs a path, or there is nothing at its path.
    """
    if config.source == "latents":
        raise DataError(
            "data.source = 'latents' stands for a prior that was fitted to latents; it has no images",
            hint="give images with --data PATH",
        )
    if config.source == "digits":
        return
    if not config.path:
        raise DataError(
            "this configuration trains on files and none are given",
            hint="pass --data PATH: a file, folder or archive of images; kaem train --help lists the kinds",
        )
    if not config.path.startswith(HUB_PREFIX) and not Path(config.path).exists():
        raise DataError(
            f"no file or folder at {config.path}",
            hint=f"check the path given with --data; a data set of the Hugging Face hub is {HUB_PREFIX}OWNER/NAME",
        )


def require_latents(path: Path) -> None:
    """Refuse latents that are not there.

    Raises:
        DataError: There is no file at `path`.
    """
    if not path.is_file():
        raise DataError(f"no latents at {path}", hint="save them with numpy.save('z.npy', latents)")


def require_decoder(path: Path) -> None:
    """Refuse a decoder that is not there.

    Raises:
        ArtifactError: There is no file at `path`.
    """
    if not path.is_file():
        hint = "give an ONNX file"
        if ":" in path.name:
            hint = (
                "a decoder is an ONNX file here: export the module with torch.onnx.export, or train it with "
                "kaem train --set generator.kind=module"
            )
        raise ArtifactError(f"no decoder at {path}", hint=hint)
