"""gentickets finds winning lottery tickets in deep generative models.

What it gives is loaded when it is first asked for: the command line answers most mistakes without torch, whose import
takes a second.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gentickets.channels import ChannelGroups, channel_groups, load_small, save_pretrained, save_small, shrink
    from gentickets.channels.export import Exported, export
    from gentickets.data import ImageSet
    from gentickets.errors import (
        DataError,
        Disconnected,
        Diverged,
        GenticketsError,
        MaskError,
        PruneError,
        RecipeError,
        ScoreError,
        TicketError,
    )
    from gentickets.lab.report.judgement import Judgement, judge
    from gentickets.masks import Difference, Masks, Overlap, Ticket, check_connected, difference, left_out, overlap
    from gentickets.metrics import (
        classifier_features,
        efficientnet_features,
        frechet_distance,
        inception_features,
        kernel_distance,
        random_features,
    )
    from gentickets.metrics.cost import Cost, cost
    from gentickets.objectives import ELBO, Adversarial, Around, Autoencoding, Denoising, Distilled, Objective
    from gentickets.pruning import (
        TiesBroken,
        batchnorm_scale,
        grasp,
        magnitude,
        prune,
        random_like,
        random_scores,
        snip,
        synflow,
        synflow_masks,
        synflow_score,
    )
    from gentickets.search import (
        EarlyBird,
        Level,
        Method,
        at_init,
        imp,
        one_shot,
        random_channels_control,
        random_mask_control,
        redrawn_weights_control,
        search_controls,
        transferred,
    )
    from gentickets.sparse import Accelerated, accelerate, lanes, restore
    from gentickets.training import Hook

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "Accelerated",
    "Adversarial",
    "Around",
    "Autoencoding",
    "ChannelGroups",
    "Cost",
    "DataError",
    "Denoising",
    "Difference",
    "Disconnected",
    "Distilled",
    "Diverged",
    "EarlyBird",
    "Exported",
    "GenticketsError",
    "Hook",
    "ImageSet",
    "Judgement",
    "Level",
    "MaskError",
    "Masks",
    "Method",
    "Objective",
    "Overlap",
    "PruneError",
    "RecipeError",
    "ScoreError",
    "Ticket",
    "TicketError",
    "TiesBroken",
    "accelerate",
    "at_init",
    "batchnorm_scale",
    "channel_groups",
    "check_connected",
    "classifier_features",
    "cost",
    "difference",
    "efficientnet_features",
    "export",
    "frechet_distance",
    "grasp",
    "imp",
    "inception_features",
    "judge",
    "kernel_distance",
    "lanes",
    "left_out",
    "load_small",
    "magnitude",
    "one_shot",
    "overlap",
    "prune",
    "random_channels_control",
    "random_features",
    "random_like",
    "random_mask_control",
    "random_scores",
    "redrawn_weights_control",
    "restore",
    "save_pretrained",
    "save_small",
    "search_controls",
    "shrink",
    "snip",
    "synflow",
    "synflow_masks",
    "synflow_score",
    "transferred",
]

_HOMES = {
    "channels": "ChannelGroups channel_groups load_small save_pretrained save_small shrink",
    "channels.export": "Exported export",
    "data": "ImageSet",
    "errors": "DataError Disconnected Diverged GenticketsError MaskError PruneError RecipeError ScoreError TicketError",
    "lab.report.judgement": "Judgement judge",
    "masks": "Difference Masks Overlap Ticket check_connected difference left_out overlap",
    "metrics": "classifier_features efficientnet_features frechet_distance inception_features kernel_distance "
    "random_features",
    "metrics.cost": "Cost cost",
    "objectives": "ELBO Adversarial Around Autoencoding Denoising Distilled Objective",
    "pruning": "TiesBroken batchnorm_scale grasp magnitude prune random_like random_scores snip synflow synflow_masks "
    "synflow_score",
    "search": "EarlyBird Level Method at_init imp one_shot random_channels_control random_mask_control "
    "redrawn_weights_control search_controls transferred",
    "sparse": "Accelerated accelerate lanes restore",
    "training": "Hook",
}
"""Room → the names of `__all__` that it gives."""
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

if not TYPE_CHECKING:  # whom this would tell that any name exists

    def __getattr__(name):
        """A name of `__all__`, or a module of the package, loaded now (PEP 562)."""
        if home := _HOME_OF.get(name):
            found = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
            return found
        if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
