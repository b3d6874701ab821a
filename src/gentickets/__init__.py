"""gentickets finds winning lottery tickets in deep generative models."""

from gentickets.errors import (
    DataError,
    Disconnected,
    Diverged,
    GenticketsError,
    MaskError,
    PruneError,
    RecipeError,
    TicketError,
)
from gentickets.liveness import check_connected
from gentickets.masks import Masks
from gentickets.metrics.cost import Cost, cost
from gentickets.objectives import ELBO, Adversarial, Autoencoding, Objective
from gentickets.pruning import prune, random_like
from gentickets.scores import magnitude, random_scores
from gentickets.search import Level, imp, one_shot, random_mask_control, redrawn_weights_control
from gentickets.ticket import Ticket

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "Adversarial",
    "Autoencoding",
    "Cost",
    "DataError",
    "Disconnected",
    "Diverged",
    "GenticketsError",
    "Level",
    "MaskError",
    "Masks",
    "Objective",
    "PruneError",
    "RecipeError",
    "Ticket",
    "TicketError",
    "check_connected",
    "cost",
    "imp",
    "magnitude",
    "one_shot",
    "prune",
    "random_like",
    "random_mask_control",
    "random_scores",
    "redrawn_weights_control",
]
