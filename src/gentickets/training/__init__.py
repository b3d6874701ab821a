"""The one training loop, its hooks, and what a training leaves behind."""

from gentickets.training.averaging import Average, with_averages
from gentickets.training.hooks import Hook, State
from gentickets.training.loop import Trained, train
from gentickets.training.progress import Checkpoint, Curve, Progress
from gentickets.training.settings import Settings

__all__ = [
    "Average",
    "Checkpoint",
    "Curve",
    "Hook",
    "Progress",
    "Settings",
    "State",
    "Trained",
    "train",
    "with_averages",
]
