"""The sections of a training configuration: one frozen dataclass per component, its ranges checked once."""

from kaem_train.sections.data import DataConfig
from kaem_train.sections.diffusion import DiffusionConfig
from kaem_train.sections.functions import BaseActivation, BasisName
from kaem_train.sections.generator import GeneratorConfig, cnn_kernels, first_size_and_doublings
from kaem_train.sections.latent_ebm import LatentEbmConfig
from kaem_train.sections.posterior import PosteriorConfig
from kaem_train.sections.prior import (
    LEAST_EXPERT_STD,
    MOST_OUTSIDE,
    MOST_WEIGHTS,
    PriorConfig,
    Reference,
    Variant,
)
from kaem_train.sections.refit import RefitConfig
from kaem_train.sections.training import TrainingConfig

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
