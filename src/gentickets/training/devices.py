"""The device, or the devices, that a training runs on, and the threads on one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import ClusterEnvironment, LightningEnvironment

from gentickets.training.ranks import PATIENCE


def one_device(accelerator: str, precision: str) -> Fabric:
    """A Fabric of one device, in a precision as `Settings` has it, whatever cluster this process was started on.

    Fabric guesses clusters by the environment, and refuses to be made where SLURM was asked for several tasks.
    """
    return Fabric(accelerator=accelerator, devices=1, precision=_told(precision), plugins=[LightningEnvironment()])


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """So many intra-op threads while this lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _told(precision: str) -> Any:
    """The precision that Fabric is told. Of "16-mixed" it is not: that is the loop's own (see `parts.Parts.scaler`)."""
    return "32-true" if precision == "16-mixed" else precision


@contextmanager
def several_devices(
    accelerator: str, precision: str, rank: int, size: int, meeting: Path | dist.Store | None = None
) -> Iterator[Fabric]:
    """A Fabric of `size` processes, of which this one is `rank`: it begins when all are there, and ends their talk.

    `accelerator`: "cpu", where they talk by gloo, or "cuda", by NCCL, each on a GPU of its own. `precision` as
    `Settings` has it. `meeting`: a file that is not there yet, by which the processes of one machine find each other,
    or a store of torch.distributed; None: they do by MASTER_ADDR and MASTER_PORT in the environment. Of processes on
    several machines LOCAL_RANK and LOCAL_WORLD_SIZE say, as torchrun sets them, which GPU is whose.
    """
    local, here = rank, size
    if isinstance(meeting, Path):
        _talk_by_loopback()
    else:
        local, here = (int(os.environ.get(name, n)) for name, n in (("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", size)))
    found: Any = {"store": meeting} if isinstance(meeting, dist.Store) else {"init_method": "env://"}
    if isinstance(meeting, Path):
        found = {"init_method": f"file://{meeting.absolute()}"}
    backend = "nccl" if accelerator == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=PATIENCE, **found)
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=here,
            num_nodes=size // here,
            strategy="ddp",
            precision=_told(precision),
            plugins=[_Joined(local)],
        )
        fabric.launch()
        yield fabric
    finally:
        dist.destroy_process_group()


def _talk_by_loopback() -> None:
    """What gloo and NCCL listen on is of this machine alone, unless the environment says otherwise."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    for of in ("GLOO", "NCCL"):
        if names:
            os.environ.setdefault(f"{of}_SOCKET_IFNAME", names[0])


class _Joined(ClusterEnvironment):
    """The processes of torch.distributed as they are, to Fabric."""

    def __init__(self, local_rank: int):
        super().__init__()
        self._local_rank = local_rank

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        return int(os.environ.get("MASTER_PORT", 0))

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return dist.get_world_size()

    def set_world_size(self, size: int) -> None:
        """It is what it is."""

    def global_rank(self) -> int:
        return dist.get_rank()

    def set_global_rank(self, rank: int) -> None:
        """It is what it is."""

    def local_rank(self) -> int:
        return self._local_rank

    def node_rank(self) -> int:
        return int(os.environ.get("GROUP_RANK", 0))
