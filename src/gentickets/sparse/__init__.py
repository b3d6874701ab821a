"""Sparse execution: a masked model trained and run on its live weights alone, exactly and only where that is faster."""

from gentickets.sparse.execution import Accelerated, Choice, accelerate, lanes, restore

__all__ = ["Accelerated", "Choice", "accelerate", "lanes", "restore"]
