"""Which prior is compiled to which layout."""

from __future__ import annotations

from typing import assert_never

from kaem_export.priors.collapsed import CollapsedLayout
from kaem_export.priors.components import ComponentsLayout
from kaem_export.priors.experts import ExpertsLayout
from kaem_export.priors.layout import PriorLayout
from kaem_export.priors.own_frames import OwnFramesLayout
from kaem_export.priors.summands import SummandsLayout
from kaem_train.model.prior.experts import ExpertsPrior
from kaem_train.model.prior.factorised import IndependentPrior, MixturePrior, Prior
from kaem_train.model.prior.own_frames import OwnFramesPrior


def choose_layout(prior: Prior, *, keep_components: bool = False) -> PriorLayout:
    """Return the layout of a prior.

    Args:
        prior: Prior in its trained form.
        keep_components: Whether every component of a mixture, or every summand, is tabulated instead of the latents.
    """
    match prior:
        case OwnFramesPrior():
            return OwnFramesLayout(prior)
        case ExpertsPrior():
            return ExpertsLayout(prior)
        case IndependentPrior() if prior.shares_uniforms or keep_components:
            return SummandsLayout(prior)
        case MixturePrior() if keep_components:
            return ComponentsLayout(prior)
        case IndependentPrior() | MixturePrior():
            return CollapsedLayout(prior)
        case _:
            assert_never(prior)
