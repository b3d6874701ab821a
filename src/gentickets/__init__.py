"""gentickets finds winning lottery tickets in deep generative models."""

from gentickets.chance import Overlap, overlap
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
from gentickets.groups import ChannelGroups, channel_groups
from gentickets.liveness import check_connected
from gentickets.masks import Masks
from gentickets.metrics.cost import Cost, cost
from gentickets.objectives import ELBO, Adversarial, Autoencoding, Objective
from gentickets.prunable import left_out
from gentickets.pruning import TiesBroken, prune, random_like
from gentickets.saliency import grasp, snip, synflow, synflow_masks, synflow_score
from gentickets.scores import batchnorm_scale, magnitude, random_scores
from gentickets.search import (
    EarlyBird,
    Level,
    at_init,
    imp,
    one_shot,
    random_channels_control,
    random_mask_control,
    redrawn_weights_control,
    transferred,
)
from gentickets.shrink import shrink
from gentickets.small import load_small
from gentickets.sparse import Accelerated, accelerate, lanes, restore
from gentickets.ticket import Ticket

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "Accelerated",
    "Adversarial",
    "Autoencoding",
    "ChannelGroups",
    "Cost",
    "DataError",
    "Disconnected",
    "Diverged",
    "EarlyBird",
    "GenticketsError",
    "Level",
    "MaskError",
    "Masks",
    "Objective",
    "Overlap",
    "PruneError",
    "RecipeError",
    "Ticket",
    "TicketError",
    "TiesBroken",
    "accelerate",
    "at_init",
    "batchnorm_scale",
    "channel_groups",
    "check_connected",
    "cost",
    "grasp",
    "imp",
    "lanes",
    "left_out",
    "load_small",
    "magnitude",
    "one_shot",
    "overlap",
    "prune",
    "random_channels_control",
    "random_like",
    "random_mask_control",
    "random_scores",
    "redrawn_weights_control",
    "restore",
    "shrink",
    "snip",
    "synflow",
    "synflow_masks",
    "synflow_score",
    "transferred",
]
