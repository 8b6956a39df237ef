"""Evaluation on one page: draw images, put them and the real ones through one network, compare.

    reals = prepare_reals(config, options)                    # once
    report = evaluate(open_model(Path("ckpt.pt")), reals)     # for every model

Samples are unselected and rounded to 8 bits. Distances, precision and recall need nothing but samples; likelihood
and reconstruction need the checkpoint, and its encoder.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from importlib.metadata import version

import numpy as np
import torch

import kaem
from kaem.errors import DataError, RequestError
from kaem_train.devices import find_device, set_tf32
from kaem_train.evaluation.distances import kernel_distance
from kaem_train.evaluation.extrapolation import Extrapolation, choose_sizes, extrapolated, subset
from kaem_train.evaluation.features.network import Features, Pixels, Progress, extract_features, recall_features
from kaem_train.evaluation.likelihood import MOST_IMAGES, held_out_bound
from kaem_train.evaluation.manifolds import NEIGHBOURS, precision_and_recall
from kaem_train.evaluation.models import ExportedModel, TrainedModel
from kaem_train.evaluation.options import Split
from kaem_train.evaluation.reals import Reals, choose_rows, nothing, read_pixels
from kaem_train.evaluation.reconstruction import ACTIVE_VARIANCE, decode_draws, reconstruction_error
from kaem_train.evaluation.report import EvaluationFigure, EvaluationReport, NetworkIdentity
from kaem_train.families.kaem import Kaem
from kaem_train.posterior import Posterior
from kaem_train.rng import noise_stream

_NUM, _NUM_INCEPTION = 10_000, 2_000
_SUBSETS, _SUBSETS_OF_A_SIZE = 100, 20
_NO_CHECKPOINT = "an exported file draws images and keeps neither likelihood nor encoder: evaluate the checkpoint"
_NO_LIKELIHOOD = "nothing infers latents: the family has no likelihood to bound, or the decoder came without an encoder"
_NO_DENSITY = "encoded latents lie outside the prior's domain, where it has no density: train again on a wider one"
_NO_ENCODER = "the checkpoint has no encoder"


def evaluate(model: TrainedModel | ExportedModel, reals: Reals, progress: Progress = nothing) -> EvaluationReport:
    """Measure one model.

    Args:
        model: A checkpoint or an artifact.
        reals: What it is compared with, and the options.
        progress: Told what is being done.

    Raises:
        DataError: The model draws images of another shape than the data set holds.
        RequestError: There are too few images for a figure.
    """
    with set_tf32(False):  # figures are compared across machines
        return _measure(model, reals, progress)


def _measure(model: TrainedModel | ExportedModel, reals: Reals, progress: Progress) -> EvaluationReport:
    begin = time.perf_counter()
    check_shapes(model, reals)
    num, sizes = choose_numbers(reals)
    samples = np.concatenate(list(_draw_samples(model, num, reals.options.seed, progress)))
    generated = extract_features(reals.network, samples, progress, "generated images")
    frechet, kernel = _extrapolate(reals, generated, sizes, progress)
    figures = _measure_samples(reals, generated, frechet, kernel)
    missing: dict[str, str] = {}
    if reals.options.with_floors:
        figures += _measure_real_floor(reals, num, progress)
    figures += _measure_model(model, reals, num, progress, missing)
    return EvaluationReport(
        model=model.source,
        model_fingerprint=model.fingerprint,
        weights_fingerprint=model.weights,
        sampling=model.sampling,
        updates=model.updates,
        network=NetworkIdentity(
            name=reals.network.name,
            description=reals.network.description,
            fingerprint=reals.network.fingerprint,
            num_features=reals.network.num_features,
            accuracy=getattr(reals.network, "accuracy", None),
        ),
        data=reals.origin,
        data_fingerprint=reals.dataset.fingerprint,
        real=reals.options.real,
        num_real=len(reals.features),
        num_generated=num,
        seed=reals.options.seed,
        figures=tuple(figures),
        frechet_curve=frechet,
        kernel_curve=kernel,
        missing=missing,
        notes=tuple(_write_notes(reals, sizes)),
        versions={"kaem": kaem.__version__, **{name: version(name) for name in ("torch", "torchmetrics", "numpy")}},
        duration_s=time.perf_counter() - begin,
    )


def check_shapes(model: TrainedModel | ExportedModel, reals: Reals) -> None:
    """Refuse a model and a data set of different shapes.

    Raises:
        DataError: They differ.
    """
    if tuple(model.image_shape) != reals.dataset.train.shape[1:]:
        raise DataError(
            f"{model.source} draws images of shape {tuple(model.image_shape)}, {reals.origin} holds "
            f"{reals.dataset.train.shape[1:]}",
            hint="compare a model with the kind of images it was trained on",
        )


def choose_numbers(reals: Reals) -> tuple[int, tuple[int, ...]]:
    """Return how many images to generate, and the sizes to extrapolate from.

    Raises:
        RequestError: A size is above the number of images.
    """
    options = reals.options
    default = _NUM_INCEPTION if reals.network.name == "inception" else _NUM
    num = options.num or max((default, *(options.sizes or ())))
    sizes = tuple(sorted(set(options.sizes))) if options.sizes else choose_sizes(num)
    if sizes[-1] > num:
        raise RequestError(f"--sizes asks for {sizes[-1]} images, {num} are generated", hint="raise --num")
    return num, sizes


def _draw_samples(model: TrainedModel | ExportedModel, num: int, seed: int, progress: Progress) -> Iterator[Pixels]:
    done = 0
    for images in model.draw(num, seed):
        done += len(images)
        progress("drawing images", done, num)
        yield images


def _extrapolate(
    reals: Reals, generated: Features, sizes: tuple[int, ...], progress: Progress
) -> tuple[Extrapolation, Extrapolation]:
    seed = reals.options.seed
    frechets, kernels = [], []
    for index, size in enumerate(sizes):
        some = generated[subset(len(generated), size, seed)]
        frechets.append(reals.frechet.to(some))
        kernels.append(kernel_distance(reals.features, some, num_subsets=_SUBSETS_OF_A_SIZE, seed=seed).mean)
        progress("comparing", index + 1, len(sizes))
    return extrapolated(sizes, frechets), extrapolated(sizes, kernels)


def _measure_samples(
    reals: Reals, generated: Features, frechet: Extrapolation, kernel: Extrapolation
) -> list[EvaluationFigure]:
    """Return what needs only features."""
    short = "FID" if reals.network.name == "inception" else "FD"
    kernel_short = "KID" if reals.network.name == "inception" else "KD"
    num, num_real = len(generated), len(reals.features)
    against = f"{num:,} generated, {num_real:,} real"
    points = f"{len(frechet.sizes)} sizes {frechet.sizes[0]:,} to {frechet.sizes[-1]:,}"
    whole = kernel_distance(reals.features, generated, num_subsets=_SUBSETS, seed=reals.options.seed)
    alike = min(num, num_real)
    precision, recall = precision_and_recall(reals.features[choose_rows(num_real, alike)], generated[:alike])
    subsets = f"{_SUBSETS} subsets of {whole.subset_size:,}"
    manifold = f"k = {NEIGHBOURS}, {alike:,} of each"
    return [
        EvaluationFigure(
            name="frechet_infinity",
            label=f"{short} at infinity",
            value=frechet.intercept,
            standard_error=frechet.standard_error,
            detail=f"{points}, R2 {frechet.r_squared:.3f}",
        ),
        EvaluationFigure(name="frechet", label=short, value=reals.frechet.to(generated), detail=against),
        EvaluationFigure(
            name="kernel_infinity",
            label=f"{kernel_short} at infinity",
            value=kernel.intercept,
            standard_error=kernel.standard_error,
            detail=f"{points}, R2 {kernel.r_squared:.3f}",
        ),
        EvaluationFigure(
            name="kernel",
            label=kernel_short,
            value=whole.mean,
            detail=f"{against}; {subsets}, deviation {whole.deviation:.3g}",
        ),
        EvaluationFigure(name="precision", label="precision", value=precision, detail=manifold),
        EvaluationFigure(name="recall", label="recall", value=recall, detail=manifold),
    ]


_KEEPS_TRAINING_IMAGES_APART: dict[Split, bool] = {"train": False, "test": True, "all": False}


def _measure_real_floor(reals: Reals, num: int, progress: Progress) -> list[EvaluationFigure]:
    """Return the distance that real training images themselves have, which includes what finite sets cost."""
    if not _KEEPS_TRAINING_IMAGES_APART[reals.options.real]:
        return []
    pixels = _choose_training_pixels(reals, num)
    if len(pixels) < 2:
        return []
    features = recall_features(reals.network, pixels, progress, "training images")
    detail = f"{len(pixels):,} training images, {len(reals.features):,} held out"
    return [
        EvaluationFigure(
            name="frechet_real", label="floor: real images", value=reals.frechet.to(features), detail=detail
        )
    ]


def _measure_model(
    model: TrainedModel | ExportedModel, reals: Reals, num: int, progress: Progress, missing: dict[str, str]
) -> list[EvaluationFigure]:
    """Return what needs the checkpoint, and say in `missing` what cannot be had."""
    inner = ("reconstruction_error", "frechet_reconstruction", "active_coordinates")
    if isinstance(model, ExportedModel):
        missing.update(dict.fromkeys(("log_likelihood", *inner), _NO_CHECKPOINT))
        return []
    if model.posterior is None or not isinstance(model.model, Kaem):
        missing.update(dict.fromkeys(("log_likelihood", *inner), _NO_LIKELIHOOD))
        return []
    has_encoder = model.encoder is not None
    likelihood = _measure_likelihood(model.model, model.posterior, reals, progress, has_encoder=has_encoder)
    figures = [likelihood] if math.isfinite(likelihood.value) else []
    if not figures:
        missing["log_likelihood"] = _NO_DENSITY
    if model.encoder is None:
        missing.update(dict.fromkeys(inner, _NO_ENCODER))
        return figures
    holdout = reals.dataset.holdout
    found = reconstruction_error(model.model, model.encoder, holdout.serve_on(find_device(model.model)))
    if reals.options.with_floors:
        train = reals.dataset.train
        some = train.subset(torch.from_numpy(choose_rows(len(train), min(num, len(train)))))
        rng = noise_stream(reals.options.seed, 0, "reconstruction")
        decoded = decode_draws(model.model, model.encoder, some.serve_on(find_device(model.model)), rng, progress)
        features = extract_features(reals.network, decoded, progress, "reconstructions")
        figures.append(
            EvaluationFigure(
                name="frechet_reconstruction",
                label="floor: reconstructions",
                value=reals.frechet.to(features),
                detail=f"decoded posterior draws of {len(some):,} training images, {len(reals.features):,} real",
            )
        )
    active = f"of {found.num_latents}: posterior means vary by more than {ACTIVE_VARIANCE}"
    figures += [
        EvaluationFigure(
            name="reconstruction_error",
            label="reconstruction error",
            value=found.squared_error,
            detail=f"mean squared, per pixel in [0, 1]; posterior means of {len(holdout):,} held-out images",
        ),
        EvaluationFigure(name="active_coordinates", label="active coordinates", value=found.num_active, detail=active),
    ]
    return figures


def _measure_likelihood(
    model: Kaem, posterior: Posterior, reals: Reals, progress: Progress, *, has_encoder: bool
) -> EvaluationFigure:
    num_samples = posterior.num_bound_samples
    progress("likelihood", 0, 1)
    bound = held_out_bound(
        model,
        posterior,
        reals.dataset.holdout.serve_on(find_device(model)),
        noise_stream(reals.options.seed, 0, "held-out bound"),
        num_samples=num_samples,
    )
    progress("likelihood", 1, 1)
    proposals = "the encoder" if has_encoder else "the prior"
    num_images = min(MOST_IMAGES, len(reals.dataset.holdout))
    return EvaluationFigure(
        name="log_likelihood",
        label="log-likelihood at least",
        value=bound,
        detail=f"nats per image; {num_samples:,} samples of {proposals}, {num_images:,} held-out images",
    )


def _choose_training_pixels(reals: Reals, num: int) -> Pixels:
    train = read_pixels(reals.dataset.train)
    some: Pixels = train[choose_rows(len(train), min(num, len(train)))]
    return some


def _write_notes(reals: Reals, sizes: tuple[int, ...]) -> list[str]:
    num_features, num_real = reals.network.num_features, len(reals.features)
    notes = []
    if num_real <= num_features:
        notes.append(
            f"{num_real:,} real images do not determine the covariance of {num_features:,} features: "
            "Frechet distances are too large, and compare only where this number is the same"
        )
    if sizes[0] <= num_features:
        notes.append(
            f"the smallest size, {sizes[0]:,}, is not above the {num_features:,} features: "
            "the line in 1/n is not straight there"
        )
    return notes
