"""scikit-learn's handwritten digits: the set that needs no file and no network."""

from __future__ import annotations

import numpy as np

from gentickets.data.decoding import Example
from gentickets.data.sources import Rows, Source


def find(split: str) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8, a fifth of each class held out."""

    def read() -> Rows:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
        labels = bunch.target.astype(np.int64)
        rows = np.flatnonzero(_held_out_by_class(labels) == (split == "test"))
        return Rows(len(rows), [Example(f"digit {row}", pixels[row], int(labels[row])) for row in rows])

    return Source("digits", {"set": "digits"}, read)


def _held_out_by_class(labels: np.ndarray) -> np.ndarray:
    """A bool a label: True for a fifth of each class, drawn by a fixed seed."""
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order = np.random.Generator(np.random.PCG64([0, int(label)])).permutation(len(rows))
        held[rows[order[: round(len(rows) / 5)]]] = True
    return held
