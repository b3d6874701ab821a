"""The compiled library of the kernels, as far as it goes without torch: whether there is one, and of this version."""

from __future__ import annotations

import ctypes
import sysconfig
from functools import cache
from pathlib import Path

_VERSION = 3  # of the functions in `_kernels.c` and their arguments


@cache
def compiled() -> ctypes.CDLL | None:
    """The library that was built when the package was installed; None where there is none, or another version's."""
    try:
        library = ctypes.CDLL(str(Path(__file__).with_name(f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}")))
        return library if ctypes.c_int64.in_dll(library, "gt_version").value == _VERSION else None
    except (OSError, ValueError):
        return None


def missing() -> str | None:
    """Why there are no kernels here, in words; None where there are."""
    return None if compiled() is not None else "the kernels were not compiled: install with a C compiler at hand"
