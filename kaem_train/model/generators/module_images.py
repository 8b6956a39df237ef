"""What a class of the user's makes of a few latents, kept in checkpoints: its name says nothing of its code.

A class that was edited after a run may take the same weights and make other images of them. So a checkpoint keeps
the images of seven latents, and whoever builds the class again compares.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kaem.errors import ArtifactError
from kaem_train.model.generators.user_module import import_class, probe_latents

_SAME = 1e-4
_PREFIX = "generator."


@torch.no_grad()
def decode_probes(module: nn.Module, num_latents: int, device: torch.device | str = "cpu") -> Tensor:
    """Return what a module makes of the latents that it was tried on, shape (7, C, H, W); its mode stays."""
    was_training = module.training
    images: Tensor = module.eval()(probe_latents(num_latents).to(device))
    module.train(was_training)
    return images


def draw_module_images(
    name: str, num_latents: int, image_shape: tuple[int, ...], state: Mapping[str, Tensor]
) -> Tensor | None:
    """Return what a class makes of probe latents by the weights of a model, on the CPU.

    Args:
        name: `package.module:ClassName`, which this process has imported already.
        num_latents: Q.
        image_shape: (C, H, W).
        state: `state_dict` of the whole model.

    Returns:
        Images, shape (7, C, H, W); None where the class cannot be built any more, which must not cost a checkpoint.
    """
    weights = {key.removeprefix(_PREFIX): value.cpu() for key, value in state.items() if key.startswith(_PREFIX)}
    try:
        with torch.random.fork_rng(devices=[]):
            module = import_class(name)(num_latents, image_shape)
            module.load_state_dict(weights)
            return decode_probes(module, num_latents)
    except Exception:  # the user's code may raise anything
        return None


def require_same_images(found: Tensor | None, images: Tensor | None, name: str) -> None:
    """Refuse a class that makes other images of the same weights than when its checkpoint was written.

    Args:
        found: What the class makes now, as of `draw_module_images`.
        images: What the checkpoint keeps; None of one that keeps none.
        name: Name of the class.

    Raises:
        ArtifactError: The images differ.
    """
    if found is None or images is None:
        return
    is_alike = found.shape == images.shape
    if not (is_alike and torch.allclose(found, images, rtol=0.0, atol=_SAME, equal_nan=True)):
        much = f", by up to {float((found - images).abs().max()):.2g}" if is_alike else ""
        raise ArtifactError(
            f"the class {name!r} makes other images of the checkpoint's weights than when they were written{much}",
            hint="its code, what it reads, or the file has changed: use what it was trained with, or train again",
        )
