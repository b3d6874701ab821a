"""Any image set → one uint8 array, decoded once → batches on the device.

Everywhere in gentickets an image batch is a float32 tensor (batch, channels, height, width) in [-1, 1].
"""

from gentickets.data.batches import Batch, Batches, Labelled, batch_of
from gentickets.data.given import given
from gentickets.data.images import ImageSet
from gentickets.data.loading import load, load_splits, looked_at
from gentickets.data.room import check_room
from gentickets.data.telling import line

__all__ = [
    "Batch",
    "Batches",
    "ImageSet",
    "Labelled",
    "batch_of",
    "check_room",
    "given",
    "line",
    "load",
    "load_splits",
    "looked_at",
]
