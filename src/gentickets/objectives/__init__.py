"""What a generative model is trained for."""

from gentickets.objectives.adversarial import Adversarial
from gentickets.objectives.autoencoding import Autoencoding
from gentickets.objectives.base import Loss, Objective, Reconstructs, Samples
from gentickets.objectives.elbo import ELBO
from gentickets.objectives.gain_penalty import GainPenalty

OBJECTIVES: dict[str, type[Objective]] = {
    "autoencoding": Autoencoding,
    "elbo": ELBO,
    "adversarial": Adversarial,
}
"""The catalogue of objectives, by the name that recipes use."""

__all__ = [
    "ELBO",
    "OBJECTIVES",
    "Adversarial",
    "Autoencoding",
    "GainPenalty",
    "Loss",
    "Objective",
    "Reconstructs",
    "Samples",
]
