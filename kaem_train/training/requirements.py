"""What a configuration needs before it can be trained: images, libraries, an encoder, a generator that learns."""

from __future__ import annotations

from importlib import import_module

from kaem.errors import ConfigError, DataError
from kaem_train.config.families import FAMILY_RULES
from kaem_train.config.settings import Config
from kaem_train.data import Dataset
from kaem_train.fitting.judge_split import divide
from kaem_train.model.generators.trial import try_user_module


def check_trainable(config: Config, dataset: Dataset) -> None:
    """Check that a configuration has the library and the images it needs, before anything is made or replaced.

    Raises:
        ConfigError: Frames that only encoded images can start, and no encoder; a domain that cuts off the latents of
            one; or a generator that cannot train.
        DataError: Fewer images than one batch, or than the experts that start from them.
        ModuleNotFoundError: The family needs a library that is not installed.
    """
    for library in FAMILY_RULES[config.family].libraries:
        import_module(library)
    _check_generator(config)
    if config.prior.frame == "own" and not config.posterior.has_encoder:
        # Not a rule of Config: a refit gives such a prior to a model trained with any posterior.
        raise ConfigError(
            f"frame = 'own' starts from encoded images, which the {config.posterior.kind} posterior has not",
            hint="set posterior.kind=amortized or prior.frame=none",
        )
    if config.posterior.has_encoder:
        config.prior.require_tails()  # nor is this: a checkpoint from before there was the rule is still read
    num_train = len(divide(config, dataset).dataset.train)
    if num_train < config.training.batch_size:
        raise DataError(
            f"{num_train} training images do not fill one batch of {config.training.batch_size}",
            hint="lower training.batch_size",
        )
    is_started = config.prior.variant == "experts" and config.posterior.has_encoder
    if is_started and num_train < config.prior.num_components:
        raise DataError(
            f"{num_train} training images cannot start {config.prior.num_components} experts",
            hint="lower prior.num_components",
        )


def _check_generator(config: Config) -> None:
    if config.generator.kind == "onnx":
        raise ConfigError(
            "generator.kind = 'onnx' is a finished decoder, which is not trained",
            hint="fit a prior to its latents with kaem fit-prior, or train a generator.kind=module",
        )
    if config.generator.kind == "module":
        try_user_module(config.generator.module, config.prior.num_latents, config.data.image_shape)
