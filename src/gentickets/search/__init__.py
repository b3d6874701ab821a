"""The ways of finding tickets, one file each. A search is a generator of levels."""

from gentickets.search.at_init import at_init
from gentickets.search.controls import search_controls
from gentickets.search.early_bird import EarlyBird, random_channels_control
from gentickets.search.imp import imp
from gentickets.search.levels import Level, random_mask_control, redrawn_weights_control
from gentickets.search.method import Method
from gentickets.search.one_shot import one_shot
from gentickets.search.transferred import transferred

__all__ = [
    "EarlyBird",
    "Level",
    "Method",
    "at_init",
    "imp",
    "one_shot",
    "random_channels_control",
    "random_mask_control",
    "redrawn_weights_control",
    "search_controls",
    "transferred",
]
