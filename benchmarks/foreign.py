"""Networks of other people's packages on their live weights alone, beside the same held to their masks.

`python -m benchmarks sparse-foreign --threads 1`: random weights, magnitude masks of equal sparsity in each layer. A
package that is not installed is left out, in a line.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

import gentickets as gt
from benchmarks.contest import Contender, Contest, benchmark
from gentickets.masks.examples import Example, named_tensors

Made = tuple[nn.Module, Any]
"""A network, and an example input of it."""


def _made(package: str, name: str, **config: Any) -> nn.Module:
    """With weights as drawn. Raises `ModuleNotFoundError` where the package is not installed."""
    net: nn.Module = getattr(importlib.import_module(package), name)(**config)
    with torch.no_grad():  # layers that start from zeros would leave nothing to tell networks apart by
        for weight in net.parameters():
            if not weight.any():
                weight.normal_(std=0.02)
    return net


def _unet(batch: int, size: int, widths: tuple[int, ...], attention: bool = True) -> Made:
    places = ("Attn" if attention else "") + "DownBlock2D", ("Attn" if attention else "") + "UpBlock2D"
    net = _made(
        "diffusers", "UNet2DModel", sample_size=size, layers_per_block=1, block_out_channels=widths, norm_num_groups=8,
        down_block_types=("DownBlock2D", places[0]), up_block_types=(places[1], "UpBlock2D"), attention_head_dim=8,
        add_attention=attention,
    )  # fmt: skip
    return net, {"sample": torch.randn(batch, 3, size, size), "timestep": torch.arange(batch)}


def _kl_decoder(batch: int, size: int, widths: tuple[int, ...]) -> Made:
    net = _made(
        "diffusers", "AutoencoderKL", down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4, sample_size=size,
        up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=widths, layers_per_block=1, norm_num_groups=8,
    )  # fmt: skip
    return net.decoder, torch.randn(batch, 4, size // 2, size // 2)


def _dit(batch: int) -> Made:
    net = _made(
        "diffusers", "DiTTransformer2DModel", num_attention_heads=6, attention_head_dim=64, in_channels=4, num_layers=4,
        sample_size=16, patch_size=2, num_embeds_ada_norm=10, norm_num_groups=32,
    )  # fmt: skip
    given = {"hidden_states": torch.randn(batch, 4, 16, 16), "timestep": torch.arange(batch)}
    return net, given | {"class_labels": torch.arange(batch) % 10}


def _encodec_decoder(batch: int) -> Made:
    config = importlib.import_module("transformers").EncodecConfig(num_filters=16, hidden_size=64, num_lstm_layers=1)
    return _made("transformers", "EncodecModel", config=config).decoder, torch.randn(batch, 64, 75)


def _oobleck_decoder(batch: int) -> Made:
    net = _made(
        "diffusers", "AutoencoderOobleck", encoder_hidden_size=32, downsampling_ratios=[2, 4, 4], audio_channels=1,
        channel_multiples=[1, 2, 4], decoder_channels=32, decoder_input_channels=32,
    )  # fmt: skip
    return net.decoder, torch.randn(batch, 32, 256)


NETS: Mapping[str, Callable[[int], Made]] = {
    "unet": lambda batch: _unet(batch, 32, (64, 128)),
    "unet-no-attention": lambda batch: _unet(batch, 32, (64, 128), attention=False),
    "unet-tiny": lambda batch: _unet(batch, 16, (32, 64)),
    "kl-decoder": lambda batch: _kl_decoder(batch, 32, (64, 128)),
    "kl-decoder-tiny": lambda batch: _kl_decoder(batch, 16, (32, 64)),
    "dit": _dit,
    "encodec-decoder": _encodec_decoder,
    "oobleck-decoder": _oobleck_decoder,
}


@benchmark(
    {"doing": ("training", "inference"), "net": tuple(NETS), "batch": (1, 16), "sparsity": (0.9,)},
    {"net": ("unet-tiny",), "batch": (1,)},
    on_request=True,
)
def sparse_foreign(doing: str, net: str, batch: int, sparsity: float) -> Contest:
    """A step of training with fused Adam, or a pass without gradients in evaluation mode: never slower than masked."""
    closing = ExitStack()
    (dense, given), (fast, _) = _drawn(net, batch), _drawn(net, batch)
    masks = gt.prune(gt.magnitude(dense), to_sparsity=sparsity, scope="layer")
    if doing == "inference":
        masks.apply_(dense)
        dense.eval(), fast.eval()
        with torch.no_grad():
            on_live = closing.enter_context(gt.accelerate(fast, masks, given))
        runs = [_pass(each, given) for each in (dense, fast)]
    else:
        on_live = closing.enter_context(gt.accelerate(fast, masks, given))
        runs = [_step(dense, masks, given, closing), _step(fast, on_live.masks, given, closing)]
    figures = {
        "sparse layers": float(sum(choice.sparse for choice in on_live.choices)),
        "masked layers": float(len(on_live.choices)),
    }
    contenders = {
        "masked dense": Contender(runs[0]),
        "gentickets accelerate": Contender(runs[1], figures=figures, at_most={"ratio": 1.0}),
    }
    return Contest("masked dense", contenders, closing)


def _drawn(net: str, batch: int) -> Made:
    torch.manual_seed(0)
    return NETS[net](batch)


def _pass(net: nn.Module, given: Any) -> Callable[[], object]:
    example = Example.of(given, "")

    def run() -> object:
        with torch.no_grad():
            return example(net)

    return run


def _step(net: nn.Module, masks: gt.Masks, given: Any, closing: ExitStack) -> Callable[[], object]:
    example = Example.of(given, "")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-5, fused=True)
    closing.enter_context(masks.hold(net, optimizer))

    def run() -> None:
        optimizer.zero_grad()
        outputs: list[Tensor] = [tensor for _, tensor in named_tensors(example(net)) if tensor.requires_grad]
        torch.stack([out.square().mean() for out in outputs]).sum().backward()
        optimizer.step()

    return run
