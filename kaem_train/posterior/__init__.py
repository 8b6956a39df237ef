"""Posterior inference during training: one protocol; encoders, importance sampling and Langevin chains."""

from kaem_train.posterior.build import build_posterior
from kaem_train.posterior.protocol import InfersLatents, Objective, Posterior, Terms

__all__ = ["InfersLatents", "Objective", "Posterior", "Terms", "build_posterior"]
