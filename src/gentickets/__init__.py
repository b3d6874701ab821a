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
from gentickets.pruning import prune, random_like
from gentickets.scores import magnitude, random_scores
from gentickets.ticket import Ticket

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "Disconnected",
    "Diverged",
    "GenticketsError",
    "MaskError",
    "Masks",
    "PruneError",
    "RecipeError",
    "Ticket",
    "TicketError",
    "check_connected",
    "magnitude",
    "prune",
    "random_like",
    "random_scores",
]
