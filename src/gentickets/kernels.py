"""The compiled kernels of sparse layers and of masking (`_kernels.c`), called on tensors.

They are built when the package is installed with a C compiler at hand. Without one everything else works:
`accelerate` leaves every layer dense and says why, and `hold` multiplies.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gentickets.compiled import compiled

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


class RowsOfClass(ctypes.Structure):
    """Rows of live weights that share their positions; as in `_kernels.c`. Keep with the arrays it points into."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("weights", ctypes.c_int64),
        ("begin", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("channel", ctypes.c_void_p),
        ("positions", ctypes.c_int64),
        ("source", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
    )


class Rows:
    """Classes of rows, as arrays for Python and as structures for C.

    Each class: `begin` and `end` int64 (rows), `offset` int32 (weights), `order` int32 (weights) or None, `channel`
    int32 (rows; ~channel: of a row that adds to what one before it gave), `source` and `target` int32 (positions).
    """

    def __init__(self, classes: Sequence[Mapping[str, Any]]):
        self._arrays = [array for c in classes for array in c.values()]  # what the pointers point into stays alive
        self.count = len(classes)
        self.structures = (RowsOfClass * self.count)()
        for structure, c in zip(self.structures, classes, strict=True):
            structure.rows, structure.weights, structure.positions = map(len, (c["channel"], c["offset"], c["source"]))
            for name, array in c.items():
                setattr(structure, name, None if array is None else array.ctypes.data)

    @property
    def nbytes(self) -> int:
        """Bytes that the index arrays take."""
        return nbytes(self._arrays)


def nbytes(arrays: Iterable[np.ndarray | None]) -> int:
    """Bytes of arrays, views of the same numbers once."""
    kept = {id(array if array.base is None else array.base): array for array in arrays if array is not None}
    return sum((array if array.base is None else array.base).nbytes for array in kept.values())


def row_ends(counts: np.ndarray) -> dict[str, np.ndarray]:
    """`begin` and `end` of rows that have so many weights, one after the other."""
    ends = np.concatenate([[0], counts.cumsum()]).astype(np.int64)
    return {"begin": ends[:-1], "end": ends[1:]}


def gather(
    rows: Rows,
    values: Tensor,
    bias: Tensor | None,
    source: Tensor,
    out: Tensor,
    slope: float = 1.0,
    gate: Tensor | None = None,
) -> Tensor:
    """out[channel, target] = bias[channel] + Σ value * source[offset + source position], for every row; returns out.

    With a `slope` negative outputs are multiplied by it: a rectifier. With a `gate`, laid out as `out`, it is outputs
    where the gate is not positive: a rectifier's derivative. `source` and `out` are sides: (channels, positions …,
    batch), contiguous or as `new_side` makes them.
    """
    batch = out.shape[-1]
    if not batch:
        return out
    values, bias = values.contiguous(), None if bias is None else bias.contiguous()
    library()[values.dtype].gather(
        rows.count, rows.structures, values.data_ptr(), None if bias is None else bias.data_ptr(), source.data_ptr(),
        out.data_ptr(), slope, None if gate is None else gate.data_ptr(), out.stride(0) // _place(out), batch,
        _place(source), _place(source), _place(out), torch.get_num_threads(),
    )  # fmt: skip
    return out


def sample(rows: Rows, small: Tensor, big: Tensor, grad: Tensor, sums: Tensor | None = None) -> None:
    """grad[k] = Σ over positions and batch of small[row of k] * big[offset of k]: of the live weights only.

    `sums`, if given, gets Σ small[row] for each row, the gradient of a bias.
    """
    batch = small.shape[-1]
    if not batch:
        grad.zero_()
        if sums is not None:
            sums.zero_()
        return
    library()[grad.dtype].sample(
        rows.structures, small.data_ptr(), big.data_ptr(), grad.data_ptr(), None if sums is None else sums.data_ptr(),
        small.stride(0) // _place(small), batch, min(_place(small), _place(big)), _place(small), _place(big),
        torch.get_num_threads(),
    )  # fmt: skip


def gather_wide(
    rows: Rows, values: Tensor, bias: Tensor | None, source: Tensor, out: Tensor, plane: int, lanes: int
) -> Tensor:
    """The same over sides as they lie, of which offsets and positions count the numbers: `lanes` neighbours at each
    position, and `plane` numbers from one channel of the output to the next."""
    values, bias = values.contiguous(), None if bias is None else bias.contiguous()
    library()[values.dtype].gather(
        rows.count, rows.structures, values.data_ptr(), None if bias is None else bias.data_ptr(), source.data_ptr(),
        out.data_ptr(), 1.0, None, plane, lanes, lanes, 1, 1, torch.get_num_threads(),
    )  # fmt: skip
    return out


def sample_wide(rows: Rows, small: Tensor, big: Tensor, grad: Tensor, plane: int, lanes: int) -> Tensor:
    """The same over sides as they lie; `plane`: numbers from one channel of the small one to the next."""
    library()[grad.dtype].sample(
        rows.structures, small.data_ptr(), big.data_ptr(), grad.data_ptr(), None, plane, lanes, lanes, 1, 1,
        torch.get_num_threads(),
    )  # fmt: skip
    return grad


def room(batch: int, dtype: torch.dtype) -> int:
    """Numbers from one place to the next in a side where vectors of 64 bytes begin at no odd place and are whole.

    Half a vector or less is filled up to a power of two.
    """
    lanes, batch = 64 // dtype.itemsize, int(batch)  # a tensor while a model is traced
    if batch <= lanes // 2:
        return 1 << (batch - 1).bit_length() if batch else 0
    return -(-batch // lanes) * lanes


def new_side(like: Tensor, shape: Sequence[int], batch: int, *, roomy: bool) -> Tensor:
    """(*shape, batch), uninitialised: contiguous, or where `roomy` with `room` at each place, of which zeros are left
    where the batch does not fill one vector."""
    place = room(batch, like.dtype) if roomy else batch
    if place == batch:
        return like.new_empty(*shape, batch)  # no view: who gets it may change it in place
    lone = place <= 64 // like.dtype.itemsize
    return (like.new_zeros if lone else like.new_empty)(*shape, place)[..., :batch]


def is_roomy(side: Tensor) -> bool:
    """Whether a side lies in memory as `new_side` makes a roomy one."""
    place = room(side.shape[-1], side.dtype)
    if place == side.shape[-1]:
        return side.is_contiguous()
    strides = [1, place]
    for size in reversed(side.shape[1:-1]):
        strides.append(strides[-1] * size)
    return side.stride() == tuple(reversed(strides))


def _place(side: Tensor) -> int:
    """Numbers from one place of a side to the next."""
    return side.shape[-1] if side.is_contiguous() else side.stride(-2)


def padded(side: Tensor, rows: Sequence[int] = (0, 0), columns: Sequence[int] = (0, 0)) -> Tensor:
    """(channels, height, width, batch), or (channels, batch), contiguous → roomy, with so many rows and columns of
    zeros before and after."""
    *shape, batch = side.shape
    channels, height, width = shape if len(shape) == 3 else (*shape, 1, 1)
    place = room(batch, side.dtype)
    wide = (height + sum(rows), width + sum(columns)) if len(shape) == 3 else ()
    out = side.new_empty(channels, *wide, place)
    if batch:
        library()[side.dtype].pad(
            side.data_ptr(), out.data_ptr(), channels, height, width, batch * side.element_size(),
            place * side.element_size(), *rows, *columns, torch.get_num_threads(),
        )  # fmt: skip
    return out[..., :batch]


def turned(matrix: Tensor, shape: Sequence[int] | None = None, *, roomy: bool = False) -> Tensor:
    """(rows, columns), each row contiguous → (columns, rows): its transpose, in memory too; contiguous, or roomy.

    `shape`: of more than one axis in the place of the columns.
    """
    rows, columns = matrix.shape
    out = new_side(matrix, (columns,) if shape is None else shape, rows, roomy=roomy)
    library()[matrix.dtype].turn(
        matrix.data_ptr(), out.data_ptr(), rows, columns, _place(matrix), _place(out), torch.get_num_threads()
    )
    return out


def tanh(inputs: Tensor) -> Tensor:
    """tanh of float32 numbers that fill their memory, in the same strides, to a relative error of 4e-7."""
    out = torch.empty_like(inputs)
    library()[torch.float32].tanh(inputs.data_ptr(), out.data_ptr(), inputs.numel(), torch.get_num_threads())
    return out


def can_mask(weights: Tensor) -> bool:
    """Whether `mask_` can be called on these weights: floats on the CPU, contiguous, in a tensor of torch's own."""
    plain = type(weights) is nn.Parameter or type(weights) is Tensor
    return plain and weights.device.type == "cpu" and weights.dtype in library() and weights.is_contiguous()


def mask_(weights: Tensor, bits: np.ndarray) -> None:
    """Sets to 0.0, in place, each weight whose bit is 0; `bits` as `numpy.packbits` gives them."""
    library()[weights.dtype].mask(weights.data_ptr(), bits.ctypes.data, weights.numel(), torch.get_num_threads())


def threads() -> int:
    """How many threads the kernels work on: torch's, or one where torch has another OpenMP than GNU's."""
    return torch.get_num_threads() if _torch_parallel() is not None else 1


class Functions(NamedTuple):
    """The compiled functions for one dtype; but `pad` is one for all, and `tanh` is of float32."""

    gather: Any
    sample: Any
    mask: Any
    turn: Any
    pad: Any
    tanh: Any


@cache
def library() -> Mapping[torch.dtype, Functions]:
    """Dtype → functions of the compiled library, which work on the threads of torch's OpenMP; empty if not built."""
    if (lib := compiled()) is None:
        return {}
    try:
        found = {dtype: _functions(lib, suffix) for dtype, suffix in _SUFFIX.items()}
    except AttributeError:  # another version's
        return {}
    lib.gt_set_parallel.argtypes = (ctypes.c_void_p,)
    lib.gt_set_parallel(_torch_parallel())
    return found


def _functions(lib: Any, suffix: str) -> Functions:
    pointer, number = ctypes.c_void_p, ctypes.c_int64

    def bound(name: str, *types: Any) -> Any:
        function = getattr(lib, name)
        function.argtypes, function.restype = types, None
        return function

    return Functions(
        gather=bound(f"gt_gather_{suffix}", number, *(pointer,) * 5, ctypes.c_double, pointer, *(number,) * 6),
        sample=bound(f"gt_sample_{suffix}", *(pointer,) * 5, *(number,) * 6),
        mask=bound(f"gt_mask_{suffix}", pointer, pointer, number, number),
        turn=bound(f"gt_turn_{suffix}", pointer, pointer, *(number,) * 5),
        pad=bound("gt_pad", pointer, pointer, *(number,) * 10),
        tanh=bound("gt_tanh_f32", pointer, pointer, number, number),
    )


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
