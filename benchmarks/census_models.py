"""The networks of the census: small ones of other people's packages, with random weights, each with an example input.

A package that is not installed raises `ModuleNotFoundError` where its network is made. Those that would bring another
torch along (by way of torchvision) install with `pip install --no-deps`; what they import, and these networks make no
use of, has a stand-in here.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

PACKAGES = (
    "torch", "diffusers", "transformers", "monai", "denoising-diffusion-pytorch", "pythae", "encodec",
    "vector-quantize-pytorch", "x-transformers", "ema-pytorch", "stylegan2-pytorch", "lightweight-gan",
    "lightning-bolts",
)  # fmt: skip

MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {}
"""Name → what makes (model, example inputs)."""


def model(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        MODELS[name] = make
        return make

    return add


# -- packages that are not whole ----------------------------------------------------------------------------


def _stand_in_for(*packages: str) -> None:
    """Empty modules for packages that others import and these networks make no use of."""

    class Nothing(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return sys.modules.setdefault(f"{self.__name__}.{name}", Nothing(f"{self.__name__}.{name}"))

        def __call__(self, *args: Any, **kwargs: Any) -> None:
            return None

    for package in packages:
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            for name in (package, *(f"{package}.{part}" for part in ("transforms", "utils", "datasets", "models"))):
                sys.modules[name] = module = Nothing(name)
                module.__path__, module.__spec__ = [], ModuleSpec(name, None)


# -- diffusers ----------------------------------------------------------------------------------------------


def _diffusers(name: str, **config: Any) -> nn.Module:
    return getattr(importlib.import_module("diffusers.models"), name)(**config)


IMAGE = (2, 3, 16, 16)
TIME = (3, 500)


@model("diffusers UNet2DModel")
def _() -> Any:
    net = _diffusers(
        "UNet2DModel", sample_size=16, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )  # fmt: skip
    return net, {"sample": torch.randn(IMAGE), "timestep": torch.tensor(TIME)}


@model("diffusers UNet2DModel, no attention")
def _() -> Any:
    net = _diffusers(
        "UNet2DModel", sample_size=16, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )  # fmt: skip
    return net, {"sample": torch.randn(IMAGE), "timestep": torch.tensor(TIME)}


@model("diffusers UNet2DConditionModel")
def _() -> Any:
    net = _diffusers(
        "UNet2DConditionModel", sample_size=16, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32, attention_head_dim=4,
    )  # fmt: skip
    given = {"sample": torch.randn(2, 4, 16, 16), "timestep": torch.tensor(TIME)}
    return net, given | {"encoder_hidden_states": torch.randn(2, 7, 32)}


KL = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ("DownEncoderBlock2D",) * 2, "sample_size": 16,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "block_out_channels": (32, 64), "layers_per_block": 1,
    "latent_channels": 4, "norm_num_groups": 8,
}  # fmt: skip


@model("diffusers AutoencoderKL")
def _() -> Any:
    return _diffusers("AutoencoderKL", **KL), torch.randn(IMAGE)


@model("diffusers AutoencoderKL, encoder")
def _() -> Any:
    return _diffusers("AutoencoderKL", **KL), {"encoder": torch.randn(IMAGE)}


@model("diffusers AutoencoderKL, decoder")
def _() -> Any:
    return _diffusers("AutoencoderKL", **KL), {"decoder": torch.randn(2, 4, 8, 8)}


@model("diffusers VQModel")
def _() -> Any:
    return _diffusers("VQModel", **KL, num_vq_embeddings=16), torch.randn(IMAGE)


@model("diffusers AutoencoderTiny")
def _() -> Any:
    net = _diffusers(
        "AutoencoderTiny", encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(1, 2), num_decoder_blocks=(2, 1),
    )  # fmt: skip
    return net, {"encoder": torch.rand(IMAGE), "decoder": torch.randn(2, 4, 8, 8)}


@model("diffusers AutoencoderDC")
def _() -> Any:
    net = _diffusers(
        "AutoencoderDC", in_channels=3, latent_channels=4, attention_head_dim=8,
        encoder_block_types=("ResBlock", "EfficientViTBlock"), decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(16, 32), decoder_block_out_channels=(16, 32), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="Conv", upsample_block_type="interpolate", encoder_out_shortcut=True,
        decoder_in_shortcut=True, decoder_norm_types="rms_norm", decoder_act_fns="silu",
    )  # fmt: skip
    return net, {"encoder": torch.randn(IMAGE), "decoder": torch.randn(2, 4, 8, 8)}


@model("diffusers AutoencoderOobleck")
def _() -> Any:
    net = _diffusers(
        "AutoencoderOobleck", encoder_hidden_size=16, downsampling_ratios=[2, 2], channel_multiples=[1, 2],
        decoder_channels=16, decoder_input_channels=8, audio_channels=1,
    )  # fmt: skip
    return net, {"encoder": torch.randn(2, 1, 64), "decoder": torch.randn(2, 8, 16)}


@model("diffusers DiTTransformer2DModel")
def _() -> Any:
    net = _diffusers(
        "DiTTransformer2DModel", num_attention_heads=4, attention_head_dim=8, in_channels=4, num_layers=2,
        sample_size=8, patch_size=2, num_embeds_ada_norm=10, norm_num_groups=4,
    )  # fmt: skip
    given = {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor(TIME)}
    return net, given | {"class_labels": torch.tensor([1, 2])}


@model("diffusers PriorTransformer")
def _() -> Any:
    net = _diffusers(
        "PriorTransformer", num_attention_heads=4, attention_head_dim=8, num_layers=2, embedding_dim=16,
        num_embeddings=7, additional_embeddings=4,
    )  # fmt: skip
    given = {"hidden_states": torch.randn(2, 16), "timestep": torch.tensor(TIME)}
    return net, given | {"proj_embedding": torch.randn(2, 16), "encoder_hidden_states": torch.randn(2, 7, 16)}


@model("diffusers UNet1DModel")
def _() -> Any:
    net = _diffusers(
        "UNet1DModel", sample_size=32, in_channels=14, out_channels=14, block_out_channels=(32, 64),
        extra_in_channels=64, down_block_types=("DownBlock1DNoSkip", "DownBlock1D"), layers_per_block=1,
        up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
    )  # fmt: skip
    return net, {"sample": torch.randn(2, 14, 32), "timestep": torch.tensor(TIME)}


# -- transformers -------------------------------------------------------------------------------------------


def _transformers(name: str, kind: str, **config: Any) -> nn.Module:
    package = importlib.import_module("transformers")
    return getattr(package, kind)(getattr(package, name)(**config))


TOKENS = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60,
}  # fmt: skip


@model("transformers ViTMAE")
def _() -> Any:
    net = _transformers(
        "ViTMAEConfig", "ViTMAEForPreTraining", **{k: v for k, v in TOKENS.items() if k != "vocab_size"}, image_size=16,
        patch_size=4, decoder_num_attention_heads=4, decoder_hidden_size=32, decoder_num_hidden_layers=1,
        decoder_intermediate_size=48,
    )  # fmt: skip
    return net, {"pixel_values": torch.randn(IMAGE), "noise": torch.rand(2, 16)}


@model("transformers GPT2")
def _() -> Any:
    net = _transformers("GPT2Config", "GPT2LMHeadModel", vocab_size=60, n_positions=16, n_embd=32, n_layer=2, n_head=4)
    return net, {"input_ids": torch.randint(0, 60, (2, 8)), "use_cache": False}


@model("transformers Llama")
def _() -> Any:
    net = _transformers("LlamaConfig", "LlamaForCausalLM", **TOKENS, num_key_value_heads=2)
    return net, {"input_ids": torch.randint(0, 60, (2, 8)), "use_cache": False}


@model("transformers CLIP")
def _() -> Any:
    text = TOKENS | {"max_position_embeddings": 16, "eos_token_id": 59}
    image = {key: value for key, value in TOKENS.items() if key != "vocab_size"} | {"image_size": 16, "patch_size": 4}
    net = _transformers("CLIPConfig", "CLIPModel", text_config=text, vision_config=image, projection_dim=16)
    return net, {"input_ids": torch.randint(0, 60, (2, 8)), "pixel_values": torch.randn(IMAGE)}


@model("transformers VITS")
def _() -> Any:
    net = _transformers(
        "VitsConfig", "VitsModel", vocab_size=38, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        ffn_dim=32, flow_size=16, spectrogram_bins=9, upsample_initial_channel=16, upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
        prior_encoder_num_flows=1, prior_encoder_num_wavenet_layers=1, posterior_encoder_num_wavenet_layers=1,
    )  # fmt: skip
    return net, {"decoder": torch.randn(2, 16, 8)}


@model("transformers Encodec")
def _() -> Any:
    net = _transformers(
        "EncodecConfig", "EncodecModel", num_filters=8, hidden_size=16, upsampling_ratios=[2, 2], num_lstm_layers=1,
        codebook_size=16, codebook_dim=16,
    )  # fmt: skip
    return net, {"encoder": torch.randn(2, 1, 64), "decoder": torch.randn(2, 16, 16)}


@model("transformers DAC")
def _() -> Any:
    net = _transformers(
        "DacConfig", "DacModel", encoder_hidden_size=8, decoder_hidden_size=32, downsampling_ratios=[2, 2],
        upsampling_ratios=[2, 2], n_codebooks=2, codebook_size=16, codebook_dim=4,
    )  # fmt: skip
    return net, {"encoder": torch.randn(2, 1, 64), "decoder": torch.randn(2, 32, 16)}


@model("transformers SpeechT5HifiGan")
def _() -> Any:
    net = _transformers(
        "SpeechT5HifiGanConfig", "SpeechT5HifiGan", model_in_dim=8, upsample_initial_channel=32, upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
    )  # fmt: skip
    return net, torch.randn(2, 16, 8)


# -- monai --------------------------------------------------------------------------------------------------


def _monai(name: str, *args: Any, **config: Any) -> nn.Module:
    return getattr(importlib.import_module("monai.networks.nets"), name)(*args, **config)


SCAN = (2, 1, 16, 16)
SCANS = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1}


@model("monai AutoencoderKL")
def _() -> Any:
    net = _monai(
        "AutoencoderKL", **SCANS, num_res_blocks=(1, 1), channels=(16, 32), attention_levels=(False, True),
        latent_channels=4, norm_num_groups=8,
    )  # fmt: skip
    return net, torch.randn(SCAN)


@model("monai VQVAE")
def _() -> Any:
    net = _monai(
        "VQVAE", **SCANS, channels=(16, 16), num_res_channels=(16, 16), num_res_layers=1, num_embeddings=16,
        embedding_dim=8, downsample_parameters=((2, 4, 1, 1),) * 2, upsample_parameters=((2, 4, 1, 1, 0),) * 2,
    )  # fmt: skip
    return net, torch.randn(SCAN)


@model("monai DiffusionModelUNet")
def _() -> Any:
    net = _monai(
        "DiffusionModelUNet", **SCANS, num_res_blocks=1, channels=(16, 32), attention_levels=(False, True),
        norm_num_groups=8, num_head_channels=8,
    )  # fmt: skip
    return net, {"x": torch.randn(SCAN), "timesteps": torch.tensor(TIME)}


@model("monai AutoEncoder")
def _() -> Any:
    return _monai("AutoEncoder", **SCANS, channels=(8, 16), strides=(2, 2), num_res_units=1), torch.randn(SCAN)


@model("monai VarAutoEncoder")
def _() -> Any:
    net = _monai(
        "VarAutoEncoder", spatial_dims=2, in_shape=(1, 16, 16), out_channels=1, latent_size=6, channels=(8, 16),
        strides=(2, 2),
    )  # fmt: skip
    return net, torch.randn(SCAN)


@model("monai Generator")
def _() -> Any:
    net = _monai("Generator", latent_shape=(6,), start_shape=(16, 4, 4), channels=(16, 8, 1), strides=(2, 2, 1))
    return net, torch.randn(2, 6)


@model("monai UNet")
def _() -> Any:
    return _monai("UNet", **SCANS, channels=(8, 16, 32), strides=(2, 2), num_res_units=1), torch.randn(SCAN)


@model("monai SegResNet")
def _() -> Any:
    return _monai("SegResNet", **SCANS, init_filters=8, blocks_down=(1, 1), blocks_up=(1,)), torch.randn(SCAN)


@model("monai PatchDiscriminator")
def _() -> Any:
    return _monai("PatchDiscriminator", spatial_dims=2, channels=8, in_channels=1, num_layers_d=2), torch.randn(SCAN)


# -- others -------------------------------------------------------------------------------------------------


def _lucidrains() -> ModuleType:
    _stand_in_for("torchvision")
    return importlib.import_module("denoising_diffusion_pytorch")


@model("denoising-diffusion-pytorch Unet")
def _() -> Any:
    package = _lucidrains()
    return package.Unet(16, dim_mults=(1, 2), attn_heads=4, attn_dim_head=8), (torch.randn(IMAGE), torch.tensor(TIME))


@model("denoising-diffusion-pytorch Unet1D")
def _() -> Any:
    package = _lucidrains()
    net = package.Unet1D(dim=16, dim_mults=(1, 2), channels=3, attn_heads=4, attn_dim_head=8)
    return net, (torch.randn(2, 3, 32), torch.tensor(TIME))


@model("denoising-diffusion-pytorch KarrasUnet")
def _() -> Any:
    net = _lucidrains().KarrasUnet(
        image_size=16, dim=16, dim_max=32, channels=3, num_downsamples=1, num_blocks_per_stage=1, attn_res=(8,),
        attn_dim_head=8, fourier_dim=8,
    )  # fmt: skip
    return net, {"x": torch.randn(IMAGE), "time": torch.rand(2)}


@model("pythae VAE")
def _() -> Any:
    package = importlib.import_module("pythae.models")
    net = package.VAE(package.VAEConfig(input_dim=(1, 8, 8), latent_dim=4))
    return net, {"encoder": torch.rand(2, 1, 8, 8), "decoder": torch.randn(2, 4)}


@model("pythae AE")
def _() -> Any:
    package = importlib.import_module("pythae.models")
    net = package.AE(package.AEConfig(input_dim=(1, 8, 8), latent_dim=4))
    return net, {"encoder": torch.rand(2, 1, 8, 8), "decoder": torch.randn(2, 4)}


def _pythae_nets(benchmark: str, family: str, side: int, channels: int) -> tuple[nn.Module, Any]:
    config = importlib.import_module("pythae.models").AEConfig(input_dim=(channels, side, side), latent_dim=4)
    nets = importlib.import_module(f"pythae.models.nn.benchmarks.{benchmark}")
    net = nn.ModuleDict({"encoder": getattr(nets, f"Encoder_{family}")(config)})
    net["decoder"] = getattr(nets, f"Decoder_{family.replace('VAE', 'AE')}")(config)
    return net, {"encoder": torch.rand(2, channels, side, side), "decoder": torch.randn(2, 4)}


@model("pythae ResNet VAE nets")
def _() -> Any:
    return _pythae_nets("cifar", "ResNet_VAE_CIFAR", 32, 3)


@model("encodec SEANet")
def _() -> Any:
    _stand_in_for("torchaudio")
    package = importlib.import_module("encodec.modules")
    options = {"channels": 1, "dimension": 16, "n_filters": 8, "n_residual_layers": 1, "ratios": [2, 2], "lstm": 1}
    net = nn.ModuleDict({"encoder": package.SEANetEncoder(**options), "decoder": package.SEANetDecoder(**options)})
    return net, {"encoder": torch.randn(2, 1, 64), "decoder": torch.randn(2, 16, 16)}


@model("vector-quantize-pytorch VQ-VAE")
def _() -> Any:
    quantiser = importlib.import_module("vector_quantize_pytorch").VectorQuantize(dim=16, codebook_size=32)
    return ConvVQ(quantiser), torch.randn(IMAGE)


class ConvVQ(nn.Module):
    """As in that package's examples: an autoencoder of convolutions with a quantiser between its halves."""

    def __init__(self, quantiser: nn.Module):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 16, 3, 1, 1))
        self.quantiser = quantiser
        self.up = nn.Sequential(nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        codes = self.down(x)
        batch, channels, height, width = codes.shape
        codes, _, _ = self.quantiser(codes.flatten(2).transpose(1, 2))
        return self.up(codes.transpose(1, 2).reshape(batch, channels, height, width))


@model("x-transformers decoder")
def _() -> Any:
    package = importlib.import_module("x_transformers")
    layers = package.Decoder(dim=32, depth=2, heads=4, attn_dim_head=8)
    return package.TransformerWrapper(num_tokens=60, max_seq_len=16, attn_layers=layers), torch.randint(0, 60, (2, 8))


@model("x-transformers continuous encoder")
def _() -> Any:
    package = importlib.import_module("x_transformers")
    layers = package.Encoder(dim=32, depth=2, heads=4, attn_dim_head=8)
    net = package.ContinuousTransformerWrapper(dim_in=6, dim_out=5, max_seq_len=16, attn_layers=layers)
    return net, torch.randn(2, 8, 6)


@model("torch TransformerEncoder")
def _() -> Any:
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 8, 32)


# -- GANs of others -----------------------------------------------------------------------------------------


def _of_gpus(name: str) -> ModuleType:
    """A package that asks for a GPU when it is imported, and whose networks need none."""
    _stand_in_for("torchvision", "aim", "fire")
    with mock.patch("torch.cuda.is_available", return_value=True):
        return importlib.import_module(name)


class Generating(nn.Module):
    """A generator of stylegan2-pytorch with its styles and its noise as they are in training, from one tensor."""

    def __init__(self, package: ModuleType):
        super().__init__()
        self.mapping = package.StyleVectorizer(16, 2)
        self.generator = package.Generator(16, 16, network_capacity=4)
        self.register_buffer("noise", torch.rand(1, 16, 16, 1))

    def forward(self, codes: Tensor) -> Tensor:
        styles = self.mapping(codes)[:, None].expand(-1, self.generator.num_layers, -1)
        return self.generator(styles, self.noise.expand(len(codes), -1, -1, -1))


@model("stylegan2-pytorch generator")
def _() -> Any:
    return Generating(_of_gpus("stylegan2_pytorch.stylegan2_pytorch")), torch.randn(2, 16)


@model("stylegan2-pytorch discriminator")
def _() -> Any:
    return _of_gpus("stylegan2_pytorch.stylegan2_pytorch").Discriminator(16, network_capacity=8), torch.randn(IMAGE)


@model("lightweight-gan generator")
def _() -> Any:
    package = _of_gpus("lightweight_gan.lightweight_gan")
    return package.Generator(image_size=32, latent_dim=16, fmap_max=32), torch.randn(2, 16)


@model("lightweight-gan discriminator")
def _() -> Any:
    package = _of_gpus("lightweight_gan.lightweight_gan")
    return package.Discriminator(image_size=32, fmap_max=32, disc_output_size=1), torch.randn(2, 3, 32, 32)


def _bolts(path: str) -> ModuleType:
    """A file of lightning-bolts by itself: the package imports what is long gone."""
    found = importlib.util.find_spec("pl_bolts")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'pl_bolts'", name="pl_bolts")
    stand_ins = {
        name: ModuleType(name) for name in ("pl_bolts.utils", "pl_bolts.utils.stability", "pl_bolts.utils.warnings")
    }
    vars(stand_ins["pl_bolts.utils"])["_TORCHVISION_AVAILABLE"] = False
    vars(stand_ins["pl_bolts.utils.stability"])["under_review"] = lambda: lambda thing: thing
    vars(stand_ins["pl_bolts.utils.warnings"])["warn_missing_pkg"] = lambda *_: None
    spec = importlib.util.spec_from_file_location(path.replace("/", "."), Path(found.origin).parent / "models" / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {"pl_bolts": ModuleType("pl_bolts"), **stand_ins}):
        spec.loader.exec_module(module)
    return module


@model("lightning-bolts basic GAN")
def _() -> Any:
    package = _bolts("gans/basic/components.py")
    shape = (1, 8, 8)
    net = {"generator": package.Generator(6, shape, 32), "discriminator": package.Discriminator(shape, 64)}
    return nn.ModuleDict(net), {"generator": torch.randn(2, 6), "discriminator": torch.randn(2, *shape)}


@model("lightning-bolts DCGAN")
def _() -> Any:
    package = _bolts("gans/dcgan/components.py")
    net = {"generator": package.DCGANGenerator(6, 4, 3), "discriminator": package.DCGANDiscriminator(4, 3)}
    return nn.ModuleDict(net), {"generator": torch.randn(2, 6, 1, 1), "discriminator": torch.randn(2, 3, 64, 64)}


@model("lightning-bolts pix2pix")
def _() -> Any:
    package = _bolts("gans/pix2pix/components.py")
    net = {"generator": package.Generator(3, 3), "critic": package.PatchGAN(6)}
    image = torch.randn(1, 3, 256, 256)
    return nn.ModuleDict(net), {"generator": image, "critic": (image, image)}


@model("lightning-bolts SRGAN")
def _() -> Any:
    package = _bolts("gans/srgan/components.py")
    net = {
        "generator": package.SRGANGenerator(3, feature_maps=16, num_res_blocks=2),
        "discriminator": package.SRGANDiscriminator(3, feature_maps=8),
    }
    return nn.ModuleDict(net), {"generator": torch.randn(IMAGE), "discriminator": torch.randn(2, 3, 32, 32)}


@model("lightning-bolts ResNet-18 VAE nets")
def _() -> Any:
    package = _bolts("autoencoders/components.py")
    net = {"encoder": package.resnet18_encoder(False, False), "decoder": package.resnet18_decoder(8, 32, False, False)}
    return nn.ModuleDict(net), {"encoder": torch.randn(2, 3, 32, 32), "decoder": torch.randn(2, 8)}


@model("ema-pytorch around a generator")
def _() -> Any:
    package = importlib.import_module("ema_pytorch")
    generator = nn.Sequential(
        nn.ConvTranspose2d(6, 16, 4), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 8, 4, 2, 1),
        nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1),
    )  # fmt: skip
    return package.EMA(generator), torch.randn(2, 6, 1, 1)
