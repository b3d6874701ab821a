"""Several processes that train one model, each on its share of every batch: what they agree on, and how.

No wrapper stands around the model: objectives call its components, which a wrapper of the whole would never see. Each
rank computes the losses of its share, and the gradients are averaged before the optimisers step; so weights, averages
and optimisers are the same on all ranks, to the bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

from gentickets.data.batches import Batch, Labelled
from gentickets.errors import GenticketsError
from gentickets.masks.names import named_layers

PATIENCE = timedelta(days=7)
"""How long a rank waits for another: a process that is gone is noticed at once, and one that judges a model may take
its time."""

T = TypeVar("T")

_WRAPPERS = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")
_words: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class Ranks:
    """The processes that train one model together: this one is `rank` of `size`. Here: one, alone."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def of(fabric: Fabric) -> Ranks:
        """Those of a Fabric: many, where it was launched on several devices."""
        if fabric.world_size == 1:
            return Ranks()
        if not dist.is_initialized():
            raise GenticketsError(f"fabric has {fabric.world_size} devices and no processes yet: fabric.launch() first")
        return Together()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def told(self, what: Any = None) -> Any:
        """What the first rank has, on every rank."""
        return what

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each of the flags, set where any rank has it set."""
        return flags

    def alike(self, value: object) -> bool:
        """Whether a value, told by its `repr`, is the same on all ranks."""
        return True

    def by_first(self, act: Callable[[], T], hear: Callable[[Any], None] = lambda _: None) -> T:
        """What `act` gives on the first rank, on every rank; what it raises there, all raise.

        Meanwhile the others `hear` what the first one tells by `say`.
        """
        return act()

    def say(self, what: Any) -> None:
        """Lets the others hear something, within `by_first`."""

    def share(self, batch: Batch, parts: int) -> Batch:
        """This rank's images of a step: of each of the step's `parts` batches an equal share, in the batch's order.

        Raises `GenticketsError` where they cannot be shared out equally.
        """
        return batch

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all ranks."""
        return value

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Makes the gradients the means over all ranks.

        A parameter that has a gradient on one rank alone has it on all: its share of the mean.
        """

    def check_same(self, tensors: Iterable[Tensor], what: str, mend: str) -> None:
        """Raises `GenticketsError` on every rank where a bit of these tensors differs between two."""


class Together(Ranks):
    """All processes of torch.distributed, as they are when this is made.

    What is small and decides something goes by gloo, whatever gradients go by: a GPU does not wait for it.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        world = dist.group.WORLD
        if world not in _words:
            _words[world] = world if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=PATIENCE)
        self._words = _words[world]

    # -- what all know ------------------------------------------------------------------------------------

    def told(self, what: Any = None) -> Any:
        parcel = [what]
        dist.broadcast_object_list(parcel, src=0, group=self._words, device=torch.device("cpu"))
        return what if self.is_first else parcel[0]

    def all(self, what: Any) -> list[Any]:
        """What each rank has, on every rank."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, what, group=self._words)
        return found

    def any(self, *flags: bool) -> tuple[bool, ...]:
        found = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._words)
        return tuple(map(bool, found.tolist()))

    def alike(self, value: object) -> bool:
        number = int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:7], "big")
        found = torch.tensor([number, -number])
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._words)
        return bool(found[0] == -found[1])

    def by_first(self, act: Callable[[], T], hear: Callable[[Any], None] = lambda _: None) -> T:
        if not self.is_first:
            return self._hearing(hear)
        try:
            given = act()
        except BaseException as error:
            known = isinstance(error, GenticketsError)
            self.told(("failed", error if known else GenticketsError(f"the first process failed: {error!r}")))
            raise
        self.told(("done", given))
        return given

    def _hearing(self, hear: Callable[[Any], None]) -> Any:
        while True:
            kind, what = self.told()
            if kind == "failed":
                raise what
            if kind == "done":
                return what
            hear(what)

    def say(self, what: Any) -> None:
        self.told(("said", what))

    # -- what is shared out -------------------------------------------------------------------------------

    def share(self, batch: Batch, parts: int) -> Batch:
        if not isinstance(batch, Tensor | Labelled):
            raise GenticketsError(
                f"a batch is a {type(batch).__name__}: of a tensor of images each device takes a share"
            )
        if len(batch) % (parts * self.size):
            raise GenticketsError(
                f"a batch of {len(batch) // parts} images cannot be shared out equally among {self.size} devices: "
                f"take a batch_size that {self.size} divides"
            )
        each = len(batch) // parts // self.size
        return joined([part[each * self.rank : each * (self.rank + 1)] for part in batch.chunk(parts)])

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        dist.all_reduce(tensor)
        return tensor

    def mean(self, value: Tensor) -> Tensor:
        return self.sum_(value.clone()) / self.size

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        found = [parameter.grad is not None for parameter in parameters]
        grads = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in parameters]
        had = torch.tensor(found, dtype=torch.float32).to(grads[0].device)
        groups: dict[torch.dtype, list[Tensor]] = {had.dtype: [had]}
        for grad in grads:
            groups.setdefault(grad.dtype, []).append(grad)
        for together in groups.values():
            flat = self.sum_(torch.cat([tensor.reshape(-1) for tensor in together]))
            for tensor, part in zip(together, flat.split([tensor.numel() for tensor in together]), strict=True):
                tensor.copy_(part.view(tensor.shape))
        everywhere = found if all(found) else [bool(count) for count in had.tolist()]
        for parameter, grad, has in zip(parameters, grads, everywhere, strict=True):
            parameter.grad = grad.div_(self.size) if has else None

    def check_same(self, tensors: Iterable[Tensor], what: str, mend: str) -> None:
        sums = [_bits(tensor) for tensor in tensors]
        if not self.alike(torch.stack([total.cpu() for total in sums]).tolist() if sums else []):
            raise GenticketsError(f"{what} differ between the {self.size} processes that train together: {mend}")


@torch.no_grad()
def _bits(tensor: Tensor) -> Tensor:
    """A number that follows from all bits of a tensor."""
    words = {1: torch.uint8, 2: torch.int16}.get(tensor.element_size(), torch.int32)
    return tensor.detach().contiguous().reshape(-1).view(words).sum(dtype=torch.int64)


# -- batches and models ------------------------------------------------------------------------------------------------


def joined(parts: Sequence[Batch]) -> Batch:
    """Batches one after another, as one."""
    if len(parts) == 1:
        return parts[0]
    images = torch.cat([part.images if isinstance(part, Labelled) else part for part in parts])
    labels = [part.labels for part in parts if isinstance(part, Labelled)]
    return Labelled(images, torch.cat(labels)) if labels else images


def check_bare(model: nn.Module) -> None:
    """Raises `GenticketsError` where a wrapper that averages gradients by itself stands around the model or in it.

    An objective calls `model.encoder`, past the forward pass of a wrapper of the whole, which then averages nothing and
    says so to nobody; around components they average, but every rank draws for itself and has its own batch norm.
    """
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in _WRAPPERS and _has_company(module):
            own = [part for part in name.split(".") if part not in ("", "_forward_module", "_orig_mod")]
            where = ".".join(["model", *own]) if own else "the model"
            raise GenticketsError(
                f"{where} is wrapped in {kind}, past which objectives call its components: give the bare model, "
                f"and fabric=Fabric(devices=…), launched: training averages the gradients itself"
            )
    for name, layer in named_layers(model):
        if any(hasattr(weight, "device_mesh") for weight in layer._parameters.values()):
            raise GenticketsError(f"the weights of {name or 'the model'} are spread over devices: give the bare model")


def _has_company(wrapper: Any) -> bool:
    """Whether a wrapper has more than this one process, or device, to share the work with."""
    group = getattr(wrapper, "process_group", None)
    return group is None or dist.get_world_size(group) > 1
