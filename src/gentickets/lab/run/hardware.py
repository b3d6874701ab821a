"""The devices that a recipe asks for, and whether this machine has them."""

from __future__ import annotations

import logging
import os

import torch
from lightning_fabric import Fabric

from gentickets.errors import HardwareError
from gentickets.lab.recipe import Recipe
from gentickets.training.devices import one_device

# What Fabric says of precision and tensor cores, every process of a run would say at every training.
logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)


def make_fabric(recipe: Recipe) -> Fabric:
    """One device, in the recipe's precision. Raises `HardwareError` where the machine lacks what the recipe wants."""
    training = recipe.training
    check_launched(training.devices)
    accelerator = training.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise HardwareError("training.accelerator=cuda: no CUDA device here; take cpu, or auto")
    if accelerator == "cuda" and launched() is None and training.devices > torch.cuda.device_count():
        raise HardwareError(
            f"training.devices={training.devices}: this machine has {torch.cuda.device_count()} GPUs; take "
            f"training.devices={torch.cuda.device_count()}"
        )
    if training.precision == "bf16-mixed" and not has_bfloat16(accelerator):
        raise HardwareError(
            f"training.precision=bf16-mixed: this {accelerator} has no bfloat16 arithmetic, and would be many times "
            f"slower than in float32; take 32-true"
        )
    if training.precision == "16-mixed" and accelerator != "cuda":
        raise HardwareError(
            f"training.precision=16-mixed: this {accelerator} has no fast float16 arithmetic; take bf16-mixed or "
            f"32-true"
        )
    return one_device(accelerator, training.precision)


def has_bfloat16(accelerator: str) -> bool:
    """Whether "cpu" or "cuda" computes in bfloat16 by itself, rather than by way of float32."""
    if accelerator == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) if torch.backends.mkldnn.is_available() else False


def launched() -> int | None:
    """How many processes torchrun started, of which this is one; None where it did not."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else None


def check_launched(devices: int) -> None:
    """Raises `HardwareError` where torchrun started another number of processes than there are to be devices."""
    started = launched()
    if started not in (None, devices):
        raise HardwareError(
            f"training.devices={devices}: torchrun started {started} processes; take training.devices={started}, "
            f"or start the command without it"
        )
