"""Checkpoints: one file of plain containers and tensors, written atomically, read without running code.

Format versions, newest first (bump for a change that an older reader would misread):
    4   prior.domain among the weights: the domain of the prior has grown. Written only where it has.
    3   finished: the prior's section and the weights of the model to use, where they are not those that training
        would go on with; average: averages of the weights and their counts, where they are kept.
        Files of formats 1 and 2 are read.
    2   no rng_state: noise is a function of (seed, step). Files of format 1 are read; resumed, they continue
        with noise of the new kind.
    1   first version: kaem_checkpoint, config, model_state, posterior_state, optimiser_state, step,
        rng_state, data_fingerprint.

The digest of a model's weights, by which artifacts, evaluations and checkpoints know each other.
"""

from __future__ import annotations

import io
import pickle
import shlex
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kaem.artifact import fingerprint
from kaem.config import from_mapping, to_mapping
from kaem.errors import ArtifactError, ConfigError, DataError, KaemError
from kaem.files import replacing
from kaem_train.config import PriorConfig
from kaem_train.config.preflight import damaged_checkpoint, require_checkpoint
from kaem_train.config.settings import Config
from kaem_train.devices import bring_to_cpu
from kaem_train.families.build import Model, build_model
from kaem_train.families.kaem import Kaem
from kaem_train.model.generators.module_images import draw_module_images, require_same_images

FORMAT_VERSION = 4
_BEFORE_GROWTH = 3
"""The version of a checkpoint that holds nothing newer: what an older reader can read, it may."""

_VERSION_KEY = "format_version"
_FIELDS = (
    "config",
    "model_state",
    "posterior_state",
    "optimiser_state",
    "step",
    "data_fingerprint",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedModel:
    """The model that is evaluated and exported, where training goes on with another one.

    Attributes:
        prior: The prior's section of its configuration; the other sections are those of the run.
        model_state: `state_dict` of `Kaem` for that configuration.
        posterior_state: Tensors of the network that goes with it; None where it is the checkpoint's.
    """

    prior: PriorConfig
    model_state: dict[str, Tensor]
    posterior_state: dict[str, Tensor] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything a run needs to go on as if it had not stopped.

    Attributes:
        config: The whole configuration.
        model_state: `state_dict` of `Kaem`.
        posterior_state: `state_dict` of the posterior's network: an encoder, adapted step sizes, or empty.
        optimiser_state: `state_dict` of Adam.
        step: Updates done.
        data_fingerprint: Fingerprint of the data set trained on.
        average_state: `state_dict` of `WeightAverage`; None where no average is kept.
        finished: The model to use where it is not `model_state`: averaged weights, a refitted prior.
        module_images: What a generator of the user's own made of a few latents when this was written; see
            `model/generators/module_images.py`. None of others, and before there were any.
    """

    config: Config
    model_state: dict[str, Tensor]
    posterior_state: dict[str, Tensor]
    optimiser_state: dict[str, Any]
    step: int
    data_fingerprint: str
    average_state: dict[str, Any] | None = None
    finished: FinishedModel | None = None
    module_images: Tensor | None = None

    @property
    def used_state(self) -> dict[str, Tensor]:
        """State of the model to use."""
        return self.model_state if self.finished is None else self.finished.model_state

    @property
    def inference_state(self) -> dict[str, Tensor]:
        """State of the posterior's network that goes with the finished model."""
        if self.finished is not None and self.finished.posterior_state is not None:
            return self.finished.posterior_state
        return self.posterior_state


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `path` whole or not at all.

    Raises:
        RequestError: The file cannot be written.
        KaemError: A number of the model is not finite; nothing is written.
    """
    _require_finite(checkpoint)
    content = {name: getattr(checkpoint, name) for name in _FIELDS}
    content["config"] = to_mapping(checkpoint.config)
    content[_VERSION_KEY] = FORMAT_VERSION if _has_grown(checkpoint) else _BEFORE_GROWTH
    if checkpoint.finished is not None:
        finished = checkpoint.finished
        content["finished"] = {"prior": to_mapping(finished.prior), "model_state": finished.model_state}
        if finished.posterior_state is not None:
            content["finished"]["posterior_state"] = finished.posterior_state
    if checkpoint.average_state is not None:
        content["average"] = checkpoint.average_state
    if checkpoint.config.generator.module:
        content["module_images"] = _draw_class_images(checkpoint)
    content = bring_to_cpu(content)
    with replacing(path) as draft:
        draft.write_bytes(packed(content))


def require_same_data(checkpoint: Checkpoint, fingerprint: str, hint: str) -> None:
    """Refuse a data set, by its fingerprint, on which a checkpoint was not trained.

    Raises:
        DataError: It is another one; `hint` says what to do.
    """
    if fingerprint != checkpoint.data_fingerprint:
        raise DataError(
            f"the data has fingerprint {fingerprint[:19]}, the checkpoint was trained on "
            f"{checkpoint.data_fingerprint[:19]}",
            hint=hint,
        )


def require_same_class(checkpoint: Checkpoint) -> None:
    """Refuse a class of the user's that was edited since its checkpoint was written; nothing of other generators.

    Raises:
        ArtifactError: It makes other images of the same weights.
    """
    if checkpoint.module_images is not None:
        name = checkpoint.config.generator.module
        require_same_images(_draw_class_images(checkpoint), checkpoint.module_images, name)


def _draw_class_images(checkpoint: Checkpoint) -> Tensor | None:
    config = checkpoint.config
    shape = config.data.image_shape
    return draw_module_images(config.generator.module, config.prior.num_latents, shape, checkpoint.used_state)


def _has_grown(checkpoint: Checkpoint) -> bool:
    """Whether the domain of a prior that is not refitted is among the weights; that of one which is always was."""
    parts = [(checkpoint.config.prior, checkpoint.model_state)]
    if checkpoint.finished is not None:
        parts.append((checkpoint.finished.prior, checkpoint.finished.model_state))
    return any("prior.domain" in state and not prior.refit_interval for prior, state in parts)


def packed(content: Any) -> memoryview:
    """Return what `torch.save` would write; writing it oneself makes a full disk the system's error and not torch's."""
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getbuffer()


def _require_finite(checkpoint: Checkpoint) -> None:
    """Refuse a model that could not be used: what a run goes on with (Adam's moments) is its own matter."""
    finished = checkpoint.finished
    states = {
        "model": checkpoint.model_state,
        "posterior": checkpoint.posterior_state,
        "finished model": {} if finished is None else finished.model_state,
        "finished posterior": {} if finished is None else finished.posterior_state or {},
    }
    for what, state in states.items():
        for name, value in state.items():
            # A mask of attention is infinite from the start; a weight that diverges stops the run.
            may_be_infinite = bool(checkpoint.config.generator.module) and name.startswith("generator.")
            broken = torch.isnan(value) if may_be_infinite else ~torch.isfinite(value)
            if value.is_floating_point() and bool(broken.any()):
                raise KaemError(
                    f"{name} of the {what} is not finite, so no checkpoint is written",
                    hint="the fit diverged: lower the learning rate, or look for odd rows in the data",
                )


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; only tensors and plain containers are unpickled (`weights_only=True`).

    Raises:
        ArtifactError: The file is missing, damaged, not a kaem checkpoint, or of a newer format.
    """
    require_checkpoint(path)  # a zip archive: anything else would enter torch's reader of old pickles
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError):
        raise damaged_checkpoint(path) from None
    if not isinstance(content, dict) or not isinstance(content.get(_VERSION_KEY), int):
        raise ArtifactError(
            f"{path} is a torch file but not a kaem checkpoint", hint="give the ckpt.pt that kaem train wrote"
        )
    if content[_VERSION_KEY] > FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has checkpoint format {content[_VERSION_KEY]}, this kaem reads up to {FORMAT_VERSION}",
            hint="upgrade kaem",
        )
    missing = [name for name in _FIELDS if name not in content]
    if missing:
        raise ArtifactError(f"{path} lacks {', '.join(missing)}", hint="the file is damaged: train again")
    try:
        config = from_mapping(Config, _add_former_defaults(content["config"]))
        finished = _read_finished(content.get("finished"))
    except (ConfigError, KeyError, TypeError) as error:
        reason = error.message if isinstance(error, ConfigError) else f"no {error}"
        raise ArtifactError(
            f"{path} holds a configuration this kaem does not know: {reason}",
            hint="use the kaem version that trained it",
        ) from None
    fields = {name: content[name] for name in _FIELDS if name != "config"}
    return Checkpoint(
        config=config,
        average_state=content.get("average"),
        finished=finished,
        module_images=content.get("module_images"),
        **fields,
    )


def _add_former_defaults(mapping: Any) -> Any:
    """Return a stored configuration with what was the case before a setting existed, where that is not its default."""
    refit = mapping.get("refit") if isinstance(mapping, dict) else None
    if not isinstance(refit, dict) or refit.get("kind", "none") == "none" or "num_set_aside" in refit:
        return mapping
    return {**mapping, "refit": {**refit, "num_set_aside": 0}}  # was trained on all images


def _read_finished(content: dict[str, Any] | None) -> FinishedModel | None:
    if content is None:
        return None
    return FinishedModel(
        prior=from_mapping(PriorConfig, content["prior"]),
        model_state=content["model_state"],
        posterior_state=content.get("posterior_state"),
    )


def load_model(path: Path, *, allow_modules: Container[str] = ()) -> tuple[Config, Model]:
    """Return the configuration and the finished model in evaluation mode, without gradients.

    Both are those of `Checkpoint.finished` where there is one.

    Args:
        path: Path of the checkpoint.
        allow_modules: Names `package.module:ClassName` that may be imported if the checkpoint's generator is one.

    Raises:
        ArtifactError: The file cannot be read as a checkpoint, its weights do not fit its configuration, or its
            generator is a module that is not allowed.
        ConfigError: That module is allowed and unusable.
    """
    return restore_model(read_checkpoint(path), path, allow_modules=allow_modules)


def restore_model(checkpoint: Checkpoint, path: Path, *, allow_modules: Container[str] = ()) -> tuple[Config, Model]:
    """Return what `load_model` does, of a checkpoint that has been read; `path` is for messages."""
    module = checkpoint.config.generator.module
    if module and module not in allow_modules:
        raise ArtifactError(
            f"the generator in {path} is the class {module!r}, and importing it would run its code",
            hint=f"if you trust that code, allow it: --allow-module {shlex.quote(module)}",
        )
    config = checkpoint.config
    if checkpoint.finished is not None:
        config = replace(config, prior=checkpoint.finished.prior)
    model = build_model(config)
    try:
        model.load_state_dict(checkpoint.used_state)
    except (RuntimeError, AttributeError, TypeError):
        damaged = "the file is damaged: train again"
        hint = f"{module!r} may have been edited: use the code it was trained with, or train again"
        raise ArtifactError(
            f"the weights in {path} do not fit its configuration", hint=hint if module else damaged
        ) from None
    require_same_class(checkpoint)
    return config, model.eval().requires_grad_(False)


def load_kaem(path: Path, *, allow_modules: Container[str] = ()) -> tuple[Config, Kaem]:
    """Return what `load_model` does, of a family whose prior is a product of univariate densities.

    Raises:
        ArtifactError: As of `load_model`, or the model is of another family.
    """
    config, model = load_model(path, allow_modules=allow_modules)
    if not isinstance(model, Kaem):
        raise ArtifactError(
            f"{path} holds a model of the family {config.family}, whose prior is no product of univariate densities",
            hint="give a kaem or a vae",
        )
    return config, model


def fingerprint_weights(state: Mapping[str, Tensor]) -> str:
    """Return the digest of a model's tensors: names, shapes, types and values, whatever file they came from."""
    parts = []
    for name in sorted(state):
        array = state[name].detach().cpu().numpy()
        parts.append(f"{name} {array.dtype} {array.shape}\n".encode() + np.ascontiguousarray(array).tobytes())
    return fingerprint(b"".join(parts))
