"""The compiled kernels of sparse layers (`_sparse.c`), called on tensors.

They are built when the package is installed with a C compiler at hand. Without one everything else works, and
`accelerate` leaves every layer dense and says why.
"""

from __future__ import annotations

import ctypes
import sysconfig
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


class RowsOfClass(ctypes.Structure):
    """Rows of live weights that share their positions; as in `_sparse.c`. Keep with the arrays it points into."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("ptr", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("channel", ctypes.c_void_p),
        ("positions", ctypes.c_int64),
        ("source", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
    )


class Rows:
    """Classes of rows, as arrays for Python and as structures for C.

    Each class: `ptr` int64 (rows + 1), `offset` int32 (weights), `order` int32 (weights) or None, `channel` int32
    (rows), `source` and `target` int32 (positions).
    """

    def __init__(self, classes: Sequence[Mapping[str, Any]]):
        self._arrays = [array for c in classes for array in c.values()]  # what the pointers point into stays alive
        self.count = len(classes)
        self.structures = (RowsOfClass * self.count)()
        for structure, c in zip(self.structures, classes, strict=True):
            structure.rows, structure.positions = len(c["channel"]), len(c["source"])
            for name, array in c.items():
                setattr(structure, name, None if array is None else array.ctypes.data)

    @property
    def nbytes(self) -> int:
        """Bytes that the index arrays take."""
        return sum(array.nbytes for array in self._arrays if array is not None)


def gather(rows: Rows, values: Tensor, bias: Tensor | None, source: Tensor, out: Tensor) -> Tensor:
    """out[channel, target] = bias[channel] + Σ value * source[offset + source position], for every row; returns out.

    `source` and `out` are contiguous: (channels, positions …, batch).
    """
    batch = out.shape[-1]
    if not batch:
        return out
    library()[values.dtype][0](
        rows.count, rows.structures, values.data_ptr(), None if bias is None else bias.data_ptr(), source.data_ptr(),
        out.data_ptr(), out.stride(0) // batch, batch, torch.get_num_threads(),
    )  # fmt: skip
    return out


def sample(rows: Rows, small: Tensor, big: Tensor, grad: Tensor) -> Tensor:
    """grad[k] = Σ over positions and batch of small[row of k] * big[offset of k]: of the live weights only."""
    batch = small.shape[-1]
    if not batch:
        return grad.zero_()
    library()[grad.dtype][1](
        rows.structures, small.data_ptr(), big.data_ptr(), grad.data_ptr(), small.stride(0) // batch, batch,
        torch.get_num_threads(),
    )  # fmt: skip
    return grad


def missing() -> str | None:
    """Why there are no kernels here, in words; None where there are."""
    return None if library() else "the kernels were not compiled: install with a C compiler at hand"


def threads() -> int:
    """How many threads the kernels work on: torch's, or one where torch has another OpenMP than GNU's."""
    return torch.get_num_threads() if _torch_parallel() is not None else 1


@cache
def library() -> Mapping[torch.dtype, tuple[Any, Any]]:
    """Dtype → (gather, sample) of the compiled library, on the threads of torch's own OpenMP; empty if not built."""
    try:
        lib = ctypes.CDLL(str(Path(__file__).with_name(f"_sparse{sysconfig.get_config_var('EXT_SUFFIX')}")))
    except OSError:
        return {}
    lib.gt_set_parallel.argtypes = (ctypes.c_void_p,)
    lib.gt_set_parallel(_torch_parallel())
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    found = {}
    for dtype, suffix in _SUFFIX.items():
        both = getattr(lib, f"gt_gather_{suffix}"), getattr(lib, f"gt_sample_{suffix}")
        both[0].argtypes = (number, pointer, pointer, pointer, pointer, pointer, number, number, number)
        both[1].argtypes = (pointer, pointer, pointer, pointer, number, number, number)
        both[0].restype = both[1].restype = None
        found[dtype] = both
    return found


@cache
def _torch_parallel() -> Any:
    """The address of GOMP_parallel in the OpenMP that torch runs on, None where it has another.

    With threads of its own the kernels would wait for a core on which torch's idle threads still spin.
    """
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*")):
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p)
        except (OSError, AttributeError):
            continue
    return None
