"""The one training loop, and what a training leaves behind."""

from gentickets.training.averaging import Average
from gentickets.training.loop import Settings, Trained, Watch, train, with_averages
from gentickets.training.progress import Checkpoint, Curve, Progress

__all__ = ["Average", "Checkpoint", "Curve", "Progress", "Settings", "Trained", "Watch", "train", "with_averages"]
