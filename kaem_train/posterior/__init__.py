"""Posterior inference during training: one protocol; encoders, importance sampling and Langevin chains."""

from kaem_train.posterior.protocol import InfersLatents, Objective, Posterior, Terms, build_posterior

__all__ = ["InfersLatents", "Objective", "Posterior", "Terms", "build_posterior"]
