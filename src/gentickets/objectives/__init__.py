"""What a generative model is trained for."""

from gentickets.objectives.adversarial import Adversarial
from gentickets.objectives.around import Around
from gentickets.objectives.autoencoding import Autoencoding
from gentickets.objectives.base import Loss, Measure, Objective
from gentickets.objectives.denoising import Denoising
from gentickets.objectives.distilled import Distilled
from gentickets.objectives.elbo import ELBO
from gentickets.objectives.frozen import Frozen
from gentickets.objectives.gain_penalty import GainPenalty
from gentickets.objectives.kl_autoencoding import KLAutoencoding

__all__ = [
    "ELBO",
    "Adversarial",
    "Around",
    "Autoencoding",
    "Denoising",
    "Distilled",
    "Frozen",
    "GainPenalty",
    "KLAutoencoding",
    "Loss",
    "Measure",
    "Objective",
]
