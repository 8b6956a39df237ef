"""From a configuration to what the trainer trains: a model and its objective, by family."""

from __future__ import annotations

from kaem_train.baselines.vae import fix_standard_normal
from kaem_train.model.kaem import Kaem
from kaem_train.settings import Config


def build_model(config: Config) -> Kaem:
    """Return the configured model with freshly drawn parameters."""
    model = Kaem(config)
    if config.family == "vae":
        fix_standard_normal(model)
    return model
