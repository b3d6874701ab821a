"""From scores to masks: criteria, and how much of what they compare goes."""

from gentickets.pruning.prune import TiesBroken, prune, random_like
from gentickets.pruning.saliency import grasp, snip, synflow, synflow_masks, synflow_score
from gentickets.pruning.scores import Criterion, Scores, batchnorm_scale, magnitude, random_scores

__all__ = [
    "Criterion",
    "Scores",
    "TiesBroken",
    "batchnorm_scale",
    "grasp",
    "magnitude",
    "prune",
    "random_like",
    "random_scores",
    "snip",
    "synflow",
    "synflow_masks",
    "synflow_score",
]
