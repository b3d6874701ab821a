"""Any image set → one uint8 array, decoded once → batches on the device.

Everywhere in gentickets an image batch is a float32 tensor (batch, channels, height, width) in [-1, 1].
"""

from gentickets.data.batches import Batches
from gentickets.data.images import ImageSet
from gentickets.data.loading import load

__all__ = ["Batches", "ImageSet", "load"]
