"""scikit-learn's handwritten digits: the set that needs no file and no network."""

from __future__ import annotations

import numpy as np

from gentickets.data.decoding import Example
from gentickets.data.sources import Opened, Rows, Source


def find() -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8, a fifth of each class held out."""

    def read() -> Opened:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
        labels = bunch.target.astype(np.int64)
        held = _held_out_by_class(labels)

        def rows(of: np.ndarray) -> Rows:
            examples = [Example(f"digit {row}", pixels[row], int(labels[row])) for row in np.flatnonzero(of)]
            return Rows(len(examples), lambda: examples)

        return Opened(rows(~held), rows(held), "a fifth of each class, drawn by a fixed seed")

    return Source("digits", {"set": "digits"}, read)


def _held_out_by_class(labels: np.ndarray) -> np.ndarray:
    """A bool a label: True for a fifth of each class, drawn by a fixed seed."""
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order = np.random.Generator(np.random.PCG64([0, int(label)])).permutation(len(rows))
        held[rows[order[: round(len(rows) / 5)]]] = True
    return held
