"""Smaller networks of diffusers and transformers: kept by their own means, and read where there is no gentickets."""

import json
import re
import subprocess
import sys

import pytest
import torch

import gentickets as gt
from gentickets.errors import TicketError
from gentickets.masks.examples import Example, compare, outputs

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore")]
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

KL = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ("DownEncoderBlock2D",) * 2, "sample_size": 16,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "block_out_channels": (32, 64), "layers_per_block": 1,
    "latent_channels": 4, "norm_num_groups": 8,
}  # fmt: skip
UNET = {
    "sample_size": 16, "layers_per_block": 1, "block_out_channels": (32, 64), "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False,
}  # fmt: skip
TINY = {
    "encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16), "num_encoder_blocks": (1, 2),
    "num_decoder_blocks": (2, 1),
}  # fmt: skip
WORDS = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IMAGE, TOKENS = torch.randn(2, 3, 16, 16), {"input_ids": torch.randint(0, 60, (2, 8)), "use_cache": False}


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**WORDS)), TOKENS


def tiny():
    return diffusers.AutoencoderTiny(**TINY), {"encoder": torch.rand(2, 3, 16, 16), "decoder": torch.randn(2, 4, 8, 8)}


def kl():
    return diffusers.AutoencoderKL(**KL), IMAGE


def unet():
    return diffusers.UNet2DModel(**UNET), {"sample": IMAGE, "timestep": torch.tensor([3, 500])}


def halved(net, inputs):
    groups = gt.channel_groups(net, inputs)
    masks = gt.prune(gt.magnitude(net), fraction=0.5, scope="layer", granularity="channel", groups=groups)
    return gt.shrink(net, masks, inputs)


def parts(net, inputs):
    names = {name for name, _ in net.named_children()}
    if isinstance(inputs, dict) and set(inputs) <= names:
        return [(getattr(net, name), Example.of(given, name)) for name, given in inputs.items()]
    return [(net, Example.of(inputs, ""))]


def assert_same(one, other, inputs):
    for (net, example), (its, _) in zip(parts(one, inputs), parts(other, inputs), strict=True):
        assert compare(outputs(net, example), outputs(its, example)).equal


READING = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "gentickets":
            raise ImportError("gentickets is blocked")
sys.meta_path.insert(0, Blocked())
import torch, {package}
net = {package}.{kind}.from_pretrained(sys.argv[1])
torch.manual_seed(0)
print(sum(p.numel() for p in net.parameters()), float({result}.detach().abs().sum()))
"""


@pytest.mark.parametrize(
    ("make", "package", "kind", "result", "said"),
    [
        (llama, "transformers", "LlamaForCausalLM", "net(torch.ones(1, 4, dtype=torch.long)).logits",
         {"intermediate_size": (48, 24), "num_attention_heads": (4, 2), "num_key_value_heads": (2, 1)}),
        (tiny, "diffusers", "AutoencoderTiny", "net.decoder(torch.ones(1, 4, 8, 8))",
         {f"{part}coder_block_out_channels[{i}]": (16, 8) for part in ("en", "de") for i in (0, 1)}),
    ],
    ids=["llama", "tiny autoencoder"],
)  # fmt: skip
def test_where_a_config_can_say_it_its_package_alone_reads_it(make, package, kind, result, said, tmp_path):
    torch.manual_seed(0)
    net, inputs = make()
    small = halved(net.eval(), inputs)
    made = gt.save_pretrained(small, tmp_path / "small", inputs)
    assert (made.unsaid, made.changed) == ("", said)
    assert made.load == f"{kind}.from_pretrained({str(tmp_path / 'small')!r})"
    script = READING.format(package=package, kind=kind, result=result)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "small")], capture_output=True, text=True, check=True
    )
    size, total = done.stdout.split()
    assert int(size) == sum(p.numel() for p in small.parameters())
    expected = float(eval(result, {"net": small.eval(), "torch": torch}).detach().abs().sum())
    assert float(total) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(TicketError, match=r"holds no gentickets_cuts\.safetensors: from_pretrained reads"):
        gt.load_small(tmp_path / "small", make_model=type(small))


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (kl, r"no config says encoder\.mid_block\.attentions\.0\.to_q\.weight \(axis 0\)=64: it is 32 by the nearest"),
        (unet, r"no config says conv_in\.weight \(axis 0\)=24: it is 16 by the nearest one, with block_out_channels"),
    ],
)
def test_where_it_cannot_the_number_is_told_and_one_line_reads_it(make, number, tmp_path):
    torch.manual_seed(0)
    net, inputs = make()
    small = halved(net.eval(), inputs)
    made = gt.save_pretrained(small, tmp_path / "small", inputs)
    assert re.match(number, made.unsaid), made.unsaid
    kind = type(small).__name__
    assert made.load == f"gentickets.load_small({str(tmp_path / 'small')!r}, make_model={kind})"
    again = eval(made.load, {"gentickets": gt, kind: type(small)})
    assert_same(small, again, inputs)
    assert json.loads((tmp_path / "small" / "config.json").read_text())["block_out_channels"] == [32, 64]
    with pytest.raises((OSError, ValueError)):
        type(small).from_pretrained(tmp_path / "small")
    with pytest.raises(TicketError, match="is there and not empty: name a new folder"):
        gt.save_pretrained(small, tmp_path / "small", inputs)
    with pytest.raises(TicketError, match=r"the network is a \w+ there, and a \w+ in the smaller one"):
        gt.load_small(tmp_path / "small", make_model=lambda: torch.nn.Linear(2, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_its_dtype_is_kept(dtype, tmp_path):
    net, inputs = llama()
    small = halved(net.to(dtype).eval(), inputs)
    gt.save_pretrained(small, tmp_path / "small", inputs)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "small", dtype="auto")
    assert next(again.parameters()).dtype == dtype
    assert_same(small, again, inputs)


def test_a_decoder_is_exported_and_a_whole_autoencoder_kept(tmp_path):
    pytest.importorskip("onnxruntime")
    net, _ = kl()
    latents = torch.randn(2, 4, 8, 8)
    small = halved(net.eval(), {"decoder": latents})
    for name in ("decoder.onnx", "decoder.pt2"):
        assert gt.export(small.decoder, latents, tmp_path / name).difference < 1e-4
    gt.save_small(small, tmp_path / "kl.safetensors", lambda: diffusers.AutoencoderKL(**KL), {"decoder": latents})
    again = gt.load_small(tmp_path / "kl.safetensors", make_model=lambda: diffusers.AutoencoderKL(**KL))
    assert_same(small, again, {"decoder": latents})
    assert_same(net, again, {"encoder": IMAGE})  # which was not touched


def test_a_network_without_a_config_is_refused(tmp_path):
    with pytest.raises(TicketError, match=r"a Linear has no config .*: save_small writes it with make_model"):
        gt.save_pretrained(torch.nn.Linear(2, 2), tmp_path / "small", torch.randn(2, 2))
