"""Adapters that move live weights alone: what is trained beside a pruned weight is masked in the pass itself.

An adapter of low rank (LoRA: Hu et al. 2022) is dense: merged into a pruned weight it brings dead weights back, and to
mask them after the merge gives another network than the one that was trained. So its product is masked before it is
used, in training as in the merge: W + mask * (B A).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from gentickets.errors import MaskError
from gentickets.masks.names import Model, named_layers

_LINEAR, _CONVOLUTIONS = "Linear", ("Conv1d", "Conv2d", "Conv3d")
"""The layers of peft's LoRA whose product has the shape of the weight."""

_ALIVE = "alive_weights"
"""The name of the buffer that has the mask, in a layer of peft's."""


def mask_adapters(model: Model, masks: Mapping[str, Tensor]) -> None:
    """Masks what adapters add to the weights of these names, from here on, and the weights themselves, now.

    Raises `MaskError`, before it changes anything, for an adapter of another kind, or one that is merged already.
    """
    layers = dict(named_layers(model))
    found = [(name, layers.get(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in masks]
    for name, layer, key in found:
        _check(name, layer, key, masks[name])
    if not any(_is_of_peft(layer) or key in _chains(layer) for _, layer, key in found):
        raise MaskError(
            "no weight that the masks cover has an adapter: add them first (peft.get_peft_model, model.add_adapter, or "
            "a parametrisation of one's own)"
        )
    for name, layer, key in found:
        if key in _chains(layer):
            _put_last(layer, key, masks[name])
            continue
        if _is_of_peft(layer):
            _put_into(layer, masks[name])
        _weight(layer, key).data.masked_fill_(~masks[name].to(_weight(layer, key).device), 0.0)


def _put_last(layer: Any, key: str, mask: Tensor) -> None:
    steps = _chains(layer)[key]
    alive = mask.to(steps.original.device)
    if isinstance(steps[-1], UnderMask):
        steps[-1].alive = alive
    else:
        parametrize.register_parametrization(layer, key, UnderMask(alive))


def _put_into(layer: Any, mask: Tensor) -> None:
    layer.register_buffer(_ALIVE, mask.to(layer.get_base_layer().weight.device), persistent=False)
    layer.lora_variant = _Variants()


class UnderMask(nn.Module):
    """The last step of a parametrisation: pruned weights are 0.0, whatever the steps before it made of them."""

    def __init__(self, alive: Tensor):
        super().__init__()
        self.register_buffer("alive", alive, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight.masked_fill(~self.get_buffer("alive"), 0.0)


class _Masked:
    """LoRA under a mask, in the form in which a layer of peft's asks for variants of it."""

    @staticmethod
    def _change(layer: Any, adapter: str) -> Tensor:
        change: Tensor = layer.get_delta_weight(adapter)
        return change.masked_fill(~getattr(layer, _ALIVE), 0.0)

    def supports_lora_conversion(self) -> bool:
        return False  # two matrices do not say what the mask does

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """There is nothing beside the two matrices."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        change, base = _Masked._change(module, active_adapter), module.get_base_layer()
        bias = module.lora_B[active_adapter].bias
        bias = bias if bias is None else bias * module.scaling[active_adapter]
        x = module.lora_dropout[active_adapter](x)
        if type(module).__name__ == _LINEAR:
            return result + F.linear(x, change.T if module.fan_in_fan_out else change, bias)
        return result + base._conv_forward(x, change, bias)

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight + _Masked._change(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    @torch.no_grad()
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        orig_weight.data += _Masked._change(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight.data - _Masked._change(module, active_adapter).to(orig_weight.dtype)


class _Variants(dict[str, object]):
    """The variants of a layer of peft's: every adapter is masked, those too that are added later."""

    def __contains__(self, adapter: object) -> bool:
        return True

    def __missing__(self, adapter: str) -> object:
        return _Masked()

    def get(self, adapter: str, default: object = None) -> object:
        return self[adapter]

    def __setitem__(self, adapter: str, variant: object) -> None:
        raise MaskError(_only_plain(f"adapter {adapter!r}", variant))


def _only_plain(what: str, variant: object) -> str:
    return f"{what} has {type(variant).__name__}, and only plain LoRA can be masked: drop use_dora or such"


# -- what can be masked ------------------------------------------------------------------------------------------------


def _chains(layer: Any) -> Mapping[str, Any]:
    return dict((layer._modules.get("parametrizations") or nn.ModuleDict()).items())


def _is_of_peft(layer: Any) -> bool:
    """By its parts, so that peft need not be importable."""
    return any(kind.__name__ == "BaseTunerLayer" for kind in type(layer).__mro__)


def _weight(layer: Any, key: str) -> Tensor:
    """What the adapters change: the parameter that was there before them."""
    if key in _chains(layer):
        return _chains(layer)[key].original
    return layer.get_base_layer().get_parameter(key) if _is_of_peft(layer) else layer._parameters[key]


def _check(name: str, layer: Any, key: str, mask: Tensor) -> None:
    if layer is None:
        raise MaskError(f"the model has no layer {name.rpartition('.')[0]!r}, of which the masks cover {name!r}")
    if _is_of_peft(layer):
        _check_of_peft(name, layer, key)
    elif layer._parameters.get(key) is None and not hasattr(_chains(layer).get(key), "original"):
        raise MaskError(f"{name!r}, which the masks cover, is neither a parameter nor made of one by a parametrisation")
    if (shape := _weight(layer, key).shape) != mask.shape:
        raise MaskError(f"{name!r} is {tuple(shape)} in the model and {tuple(mask.shape)} in the masks")


def _check_of_peft(name: str, layer: Any, key: str) -> None:
    kind = type(layer)
    if not kind.__module__.startswith("peft.tuners.lora.layer") or kind.__name__ not in (_LINEAR, *_CONVOLUTIONS):
        raise MaskError(
            f"{name!r} has an adapter of kind {kind.__module__}.{kind.__name__}: only LoRA of linear layers and "
            f"convolutions adds a product in the shape of the weight; leave it out of target_modules"
        )
    if key != "weight":
        raise MaskError(f"{name!r} lies in a layer with an adapter, of which only the weight can be masked")
    if not hasattr(layer, "lora_variant"):
        raise MaskError(f"{name!r}: this peft knows no variants of LoRA: pip install 'peft>=0.18'")
    if (other := next(iter(layer.lora_variant.values()), None)) is not None:
        raise MaskError(
            f"{name!r} has {type(other).__name__}, and only plain LoRA can be masked: drop use_dora or such"
        )
    if layer.merged:
        raise MaskError(f"{name!r} has its adapter merged in already, dead weights too: unmerge first")
    if getattr(layer.get_base_layer(), "groups", 1) > 1:
        raise MaskError(f"{name!r}: peft cannot merge adapters of grouped convolutions; leave it out of target_modules")
