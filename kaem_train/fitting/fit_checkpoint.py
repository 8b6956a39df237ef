"""A prior fitted anew to the latents of a checkpoint of ours, whose decoder and encoder stay as they are.

The latents are posterior draws for training images, one each. What is written is a checkpoint like its source, so
that its likelihood can be bounded with the same encoder; it is not trained further.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kaem.errors import ArtifactError, ConfigError, DataError
from kaem_train.checkpoint import Checkpoint, read_checkpoint, require_same_data, restore_model, write_checkpoint
from kaem_train.config import PriorConfig, RefitConfig
from kaem_train.config.settings import Config
from kaem_train.data import Dataset, load_dataset
from kaem_train.devices import choose_device
from kaem_train.families.kaem import Kaem
from kaem_train.fitting.fit_prior import FittedPrior
from kaem_train.fitting.latents import Latents, leave_out_outliers, require_share
from kaem_train.fitting.refit import infer_latents, state_with_prior
from kaem_train.posterior import build_posterior
from kaem_train.rng import noise_stream

_MOST_IMAGES = 25_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedSource:
    """What a prior is fitted to.

    Attributes:
        checkpoint: Checkpoint of the model.
        model: Its finished model.
        latents: Latents of its training images.
    """

    checkpoint: Checkpoint
    model: Kaem
    latents: Latents


def read_source(
    path: Path,
    data: str | None,
    *,
    holdout: float,
    seed: int,
    allow_modules: Container[str] = (),
    keep_outliers: bool = False,
) -> FittedSource:
    """Encode the training images of a checkpoint, at most 25,000 of them.

    Args:
        path: Path of the checkpoint.
        data: Path of its images; None for the path that it trained on.
        holdout: Share of the latents that are held out, in (0, 1); half of them choose, half are scored.
        seed: Seed of the choice of images, their split and the draws.
        allow_modules: Generator classes that may be imported, see `load_model`.
        keep_outliers: Fit the few latents that lie far from all others, too.

    Raises:
        ArtifactError: It is no checkpoint, or of a family without latents of known density.
        ConfigError: The share is not in (0, 1), or its latents are not those of images, one each.
        DataError: The images are missing, others than it was trained on, or too few.
    """
    require_share(holdout)
    checkpoint = read_checkpoint(path)
    config, model = restore_model(checkpoint, path, allow_modules=allow_modules)
    if not isinstance(model, Kaem):
        raise ArtifactError(
            f"{path} holds a model of the family {config.family}, which has no encoder", hint="give a kaem or a vae"
        )
    posterior = build_posterior(checkpoint.config, model.prior.latent_shape)
    if not posterior.infers or len(model.prior.latent_shape) > 1:
        raise ConfigError(
            f"{path}: the latents of its images are not known one by one "
            f"(posterior {checkpoint.config.posterior.kind}, prior {checkpoint.config.prior.variant})",
            hint="give a model with one latent vector per image, such as a vae",
        )
    try:
        posterior.network.load_state_dict(checkpoint.inference_state)
    except (RuntimeError, AttributeError, TypeError):
        raise ArtifactError(f"{path} has lost its encoder", hint="give the checkpoint that kaem train wrote") from None
    device = choose_device()
    posterior.network.to(device).eval().requires_grad_(False)
    dataset = _load_dataset(checkpoint, data)
    rng = noise_stream(seed, 0, "latent fit")
    chosen = torch.randperm(len(dataset.train), generator=rng)[:_MOST_IMAGES]
    z = infer_latents(model.to(device), posterior, dataset.train.serve_on(device), chosen, rng)
    model.cpu()  # what follows is arithmetic of latents
    num_held_out = round(len(z) * holdout / 2.0)
    num_fitted = len(z) - 2 * num_held_out
    if num_held_out < 1 or num_fitted < 2 * z.shape[1]:
        raise DataError(f"{len(z)} training images are too few to fit a distribution of {z.shape[1]} latents")
    if not bool(torch.isfinite(z).all()):
        raise ArtifactError(
            f"the encoder of {path} gives latents that are not finite", hint="it is damaged, or diverged: train again"
        )
    fitted, choosing, scored = torch.split(z, [num_fitted, num_held_out, num_held_out])
    num_outliers = 0
    if not keep_outliers:
        fitted, choosing, scored, num_outliers = leave_out_outliers(fitted, choosing, scored)
    latents = Latents(
        fitted=fitted,
        choosing=choosing,
        scored=scored,
        num_rows=len(z),
        fingerprint=dataset.fingerprint,
        num_outliers=num_outliers,
    )
    return FittedSource(checkpoint=checkpoint, model=model, latents=latents)


def make_source_config(source: FittedSource, prior: PriorConfig) -> Config:
    """Return the configuration of the source with another prior.

    Raises:
        ConfigError: The source's posterior does not go with such a prior.
    """
    return replace(source.checkpoint.config, family="kaem", prior=prior, refit=RefitConfig())


def write_source(path: Path, source: FittedSource, fit: FittedPrior) -> None:
    """Write the source with its prior replaced.

    Raises:
        RequestError: The file cannot be written.
    """
    write_checkpoint(
        path,
        Checkpoint(
            config=make_source_config(source, fit.config),
            model_state=state_with_prior(source.model, fit.prior),
            posterior_state=source.checkpoint.inference_state,
            optimiser_state={},
            step=source.checkpoint.step,
            data_fingerprint=source.checkpoint.data_fingerprint,
        ),
    )


def _load_dataset(checkpoint: Checkpoint, data: str | None) -> Dataset:
    config = checkpoint.config.data
    if data is not None:
        config = replace(config, source="files", path=str(Path(data).expanduser()))
    dataset = load_dataset(config)
    require_same_data(checkpoint, dataset.fingerprint, "give the images that it was trained on with --data")
    return dataset
