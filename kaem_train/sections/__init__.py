"""The sections of a training configuration: one frozen dataclass per component, its ranges checked once."""

from kaem_train.sections.data import DataConfig
from kaem_train.sections.functions import BaseActivation, BasisName
from kaem_train.sections.generator import GeneratorConfig, first_size_and_doublings
from kaem_train.sections.posterior import PosteriorConfig
from kaem_train.sections.prior import LEAST_EXPERT_STD, PriorConfig
from kaem_train.sections.training import TrainingConfig

__all__ = [
    "LEAST_EXPERT_STD",
    "BaseActivation",
    "BasisName",
    "DataConfig",
    "GeneratorConfig",
    "PosteriorConfig",
    "PriorConfig",
    "TrainingConfig",
    "first_size_and_doublings",
]
