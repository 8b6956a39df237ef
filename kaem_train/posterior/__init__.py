"""Posterior inference during training: one protocol, an encoder and importance sampling from the prior."""

from kaem_train.posterior.protocol import Posterior, Terms, build_posterior

__all__ = ["Posterior", "Terms", "build_posterior"]
