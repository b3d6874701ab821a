"""Seeds that follow from others."""

from __future__ import annotations

import numpy as np


def derived_seed(*parts: int) -> int:
    """A seed that follows from these numbers alone, well mixed."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
