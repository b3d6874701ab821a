"""What a training changes beside masks, and what a checkpoint keeps of it: all but the step, the hooks and the masks.

A step is a function of these and of its number, so that what goes on from them is the uninterrupted training, bit for
bit on the same machine with the same number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.adam import FusedAdamW
from gentickets.errors import Diverged, GenticketsError
from gentickets.masks.names import changed_rest, clone, named_rest, named_state, put_rest, unwrap
from gentickets.objectives.base import Objective
from gentickets.sparse import restore
from gentickets.training.averaging import Average
from gentickets.training.settings import Settings


class Parts:
    """A model that lies on its device, by component its parameters, optimiser and average, and the loss's scaler.

    `averaged`: the averages by component (see `Average`), empty without `settings.ema`.
    """

    def __init__(self, model: nn.Module, objective: Objective, settings: Settings, device: torch.device):
        self.model, self.settings, self.device = model, settings, device
        self.parameters = {name: list(getattr(unwrap(model), name).parameters()) for name in objective.components}
        # Fabric's own loss scaling forgets what overflowed after one optimiser, and a loss may step several.
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "16-mixed")
        self.optimizers = {name: self._optimizer(name) for name in self.parameters}
        self.averaged = nn.Module()
        if settings.ema is not None:
            for name in objective.averaged:
                setattr(self.averaged, name, Average(clone(getattr(unwrap(model), name)), settings.ema))
        self._begun = list(map(named_rest, self._networks()))

    def _optimizer(self, component: str) -> torch.optim.Optimizer:
        settings, device = self.settings, self.device.type
        if not self.parameters[component]:
            raise GenticketsError(f"component {component!r} has no weight, and the objective trains it: give it one")
        plain = device == "cpu" and not self.scaler.is_enabled()
        return (FusedAdamW if plain else torch.optim.AdamW)(
            self.parameters[component],
            lr=settings.lr_of(component),
            betas=(float(settings.betas[0]), float(settings.betas[1])),  # torch takes no whole number, such as 0
            weight_decay=settings.weight_decay,
            fused=device in ("cpu", "cuda"),
        )

    def averages(self) -> Iterator[tuple[str, Average]]:
        """Component → its average."""
        return self.averaged.named_children()  # type: ignore[return-value]

    def update_averages(self) -> None:
        """Takes the weights as they are now into the averages."""
        for name, average in self.averages():
            average.update_parameters(getattr(unwrap(self.model), name))

    def finished(self) -> nn.Module:
        """The averages, as they are handed out: of dense layers, and with singular vectors of their own."""
        restore(self.averaged)
        for _, average in self.averages():
            average.settle()
        return self.averaged

    def _networks(self) -> list[nn.Module]:
        """The model, and those that average its components."""
        return [self.model, *(average.network for _, average in self.averages())]

    def check_finite(self, step: int) -> None:
        """Raises `Diverged` where a weight is no longer finite after so many steps."""
        if not all(bool(torch.isfinite(p).all()) for ps in self.parameters.values() for p in ps):
            raise Diverged(f"step {step}: weights are no longer finite; lower the learning rate or clip_norm")

    def state(self) -> dict[str, Any]:
        """All of it, and the state of torch's own random numbers, which dropout draws."""
        rest = zip(self._begun, map(named_rest, self._networks()), strict=True)
        return {
            "model": named_state(self.model),
            "averaged": self.averaged.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "device_rng": self._device_rng(),
            "rest": [changed_rest(*of_one) for of_one in rest],
        }

    def _device_rng(self) -> Tensor | None:
        """What a GPU's dropout draws from."""
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def are_of(self, state: Mapping[str, Any]) -> bool:
        """Whether a state has the tensors of this model: layers that ran in another form had others."""
        return set(state["model"]) == set(named_state(self.model))

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        own = named_state(self.model)
        with torch.no_grad():
            for name, tensor in state["model"].items():
                own[name].copy_(tensor)
        self.averaged.load_state_dict(state["averaged"])
        for network, rest in zip(self._networks(), state.get("rest", ()), strict=False):  # an older version's has none
            put_rest(network, rest)
        for name, saved in state["optimizers"].items():
            self.optimizers[name].load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if state.get("device_rng") is not None:  # a checkpoint of an older version has none
            torch.cuda.set_rng_state(state["device_rng"], self.device)
