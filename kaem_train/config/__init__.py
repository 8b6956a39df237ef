"""The sections of a training configuration: one frozen dataclass per component, its ranges checked once."""

from kaem_train.config.baselines import DiffusionConfig, LatentEbmConfig
from kaem_train.config.checks import BaseActivation, BasisName
from kaem_train.config.data import DataConfig
from kaem_train.config.generator import GeneratorConfig, cnn_kernels, first_size_and_doublings
from kaem_train.config.posterior import PosteriorConfig
from kaem_train.config.prior import (
    LEAST_EXPERT_STD,
    MOST_OUTSIDE,
    MOST_WEIGHTS,
    PriorConfig,
    Reference,
    Variant,
)
from kaem_train.config.training import RefitConfig, TrainingConfig

__all__ = [
    "LEAST_EXPERT_STD",
    "MOST_OUTSIDE",
    "MOST_WEIGHTS",
    "BaseActivation",
    "BasisName",
    "DataConfig",
    "DiffusionConfig",
    "GeneratorConfig",
    "LatentEbmConfig",
    "PosteriorConfig",
    "PriorConfig",
    "Reference",
    "RefitConfig",
    "TrainingConfig",
    "Variant",
    "cnn_kernels",
    "first_size_and_doublings",
]
