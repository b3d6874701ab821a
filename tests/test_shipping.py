"""What is handed out of a run: smaller networks as files, and components as programs that run by themselves."""

import importlib.util
import json
import os
import shutil
import sys
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import gentickets as gt
from forked import run_program
from gentickets import models
from gentickets.channels.export import export, folded
from gentickets.channels.shrinking import Shrinking, _moved
from gentickets.channels.small import Architecture, rebuilt, small_ticket
from gentickets.cli import main
from gentickets.errors import GenticketsError, TicketError
from gentickets.lab.run import folder as disk
from gentickets.lab.run import publishing
from gentickets.lab.shipping import of_level, shrink_to
from gentickets.masks.examples import Example, named_tensors
from gentickets.masks.names import clone

TINY = {
    "name": "tiny",
    "model": {"name": "conv-vae", "width": 8, "latent": 4},
    "data": {"source": "digits", "size": 8},
    "objective": {"name": "elbo"},
    "training": {"steps": 24, "batch_size": 8, "lr": 0.002, "ema": 0.9},
    "search": {
        "method": "early-bird", "granularity": "channel", "scope": "component", "rounds": 1, "fraction": 0.5,
        "window": 2, "tolerance": 0.99, "interval": 4,
    },
    "controls": {"levels": []},
    "seeds": [0],
    "evaluation": {"features": "none"},
}  # fmt: skip
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


@pytest.fixture(scope="module")
def gentickets(tmp_path_factory):
    """Runs the program in one folder for all tests here, and returns the finished process."""
    here = tmp_path_factory.mktemp("shipping")
    (here / "recipe.yaml").write_text(yaml.safe_dump(TINY))
    environment = {**os.environ, "GENTICKETS_CACHE": str(here / "cache"), "OMP_NUM_THREADS": "1"}

    def run(*arguments, expect=0):
        done = run_program(list(map(str, arguments)), here, environment)
        assert done.returncode == expect, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr + done.stdout
        return done

    run.here = here
    return run


@pytest.fixture
def called(gentickets, monkeypatch, capsys):
    """The program in this process, in the same folder: quicker, for what needs no process of its own."""

    def call(*arguments, expect=0):
        monkeypatch.chdir(gentickets.here)
        monkeypatch.setattr(sys, "argv", ["gentickets", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        done = capsys.readouterr()
        assert (ended.value.code or 0) == expect, done.out + done.err
        return done

    monkeypatch.setenv("GENTICKETS_CACHE", str(gentickets.here / "cache"))
    return call


@pytest.fixture(scope="module")
def run(gentickets):
    """A run with a dense level, and one whose channels were pruned."""
    gentickets("find", "recipe.yaml")
    return gentickets.here / "runs" / "tiny"


def outputs(net: nn.Module, batch: Any) -> list[Tensor]:
    with torch.no_grad():
        result = Example.of(batch, "")(net)
    return [result] if isinstance(result, Tensor) else list(result)


def assert_same(one: nn.Module, other: nn.Module, batch: Any, tolerance: float = 1e-5) -> None:
    for expected, found in zip(outputs(one, batch), outputs(other, batch), strict=True):
        atol = tolerance * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def family(name: str, side: int = 16) -> tuple[Architecture, nn.Module, dict[str, Any]]:
    """A model of the catalogue with gains, biases and statistics as training leaves them."""
    own = {"unet": {"zero_output": False}, "kl-autoencoder": {"depth": 2, "groups": 2}}
    sizes = {"width": 8, **own.get(name, {"latent": 6})}
    architecture = Architecture(name, side, 1, sizes)
    model = architecture.build()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.2)
                layer.weight.normal_()
    images, latents = torch.rand(2, 1, side, side) * 2 - 1, torch.randn(2, 6)
    if hasattr(model, "denoiser"):
        return architecture, model, {"denoiser": (images, torch.tensor([7, 700]))}
    if hasattr(model, "generator"):
        return architecture, model, {"generator": latents, "discriminator": images}
    codes = outputs(model.eval().encoder, images)
    return (
        architecture,
        model,
        {"encoder": images, "decoder": latents if codes[0].shape == latents.shape and len(codes) > 1 else codes[0]},
    )


# -- the file of a smaller network ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:component")
@pytest.mark.parametrize("name", list(models.CATALOGUE))
def test_a_small_network_of_every_model_comes_back_from_its_file(name, tmp_path):
    architecture, model, inputs = family(name)
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.99, scope="layer")
    shrinking = Shrinking(model, masks, inputs)
    assert sum(shrinking.removed.values()) > 0
    file = tmp_path / "small.safetensors"
    small_ticket(shrinking.model, shrinking.masks, architecture, {"seed": 3}).save(file)
    loaded = gt.load_small(file)
    assert not loaded.training
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in shrinking.model.parameters())
    masked = masks.apply_(clone(model)).eval()
    for component, example in inputs.items():
        batch = Example.of(example, component).first().map(lambda one: one.repeat(3, *[1] * (one.dim() - 1)))
        assert_same(getattr(masked, component), getattr(loaded, component), batch)
    for (_, one), (_, other) in zip(shrinking.model.named_modules(), loaded.named_modules(), strict=True):
        assert one.extra_repr() == other.extra_repr()  # the sizes that a layer says of itself
    gt.Ticket.load(file).masks.audit(loaded)
    for component, example in inputs.items():  # it can be trained on
        result = Example.of(example, component)(getattr(loaded.train(), component))
        (result if isinstance(result, Tensor) else sum(result)).sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    torch.manual_seed(0)
    architecture, model, inputs = family("dcgan", 8)
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.97, scope="layer")
    shrinking = Shrinking(model, masks, inputs)
    file = tmp_path_factory.mktemp("small") / "small.safetensors"
    small_ticket(shrinking.model, shrinking.masks, architecture).save(file)
    return file


@settings(max_examples=40)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_any_changed_bit_or_lost_end_is_one_line(where, bit, cut, small_file):
    raw = bytearray(small_file.read_bytes())
    place = int(where * len(raw))
    if cut:
        del raw[place:]
    else:
        raw[place] ^= 1 << bit
    broken = small_file.with_name("broken.safetensors")
    broken.write_bytes(raw)
    with pytest.raises(TicketError) as caught:
        gt.load_small(broken)
    assert "\n" not in str(caught.value)


def test_a_forged_origin_is_refused(small_file, tmp_path):
    ticket = gt.Ticket.load(small_file)
    network = ticket.origin["network"]

    def refused(match, **changes):
        weights = changes.pop("weights", ticket.weights)
        masks = gt.Masks({name: mask for name, mask in ticket.masks.items() if name in weights})
        with pytest.raises(TicketError, match=match):
            rebuilt(gt.Ticket(masks, weights, {"network": {**network, **changes}}))

    refused("none of", model="os.system")
    refused("unexpected keyword", options={"command": 1})
    refused("cannot have weight", sizes={"generator.layers.0": {"weight": 3}})
    refused("cannot have in_channels", sizes={"generator.layers.0": {"in_channels": "3"}})
    refused("cannot have out_channels", sizes={"generator.layers.0": {"out_channels": 0}})
    refused("no small network", sizes={"generator.nowhere": {"in_channels": 3}})
    first = next(iter(ticket.weights))
    refused(f"lacks {first}", weights={name: w for name, w in ticket.weights.items() if name != first})
    refused("no place", weights={**ticket.weights, "generator.layers.0.extra": torch.ones(2)})
    plain = gt.Ticket(ticket.masks, ticket.weights, {})
    plain.save(tmp_path / "plain.ticket")
    with pytest.raises(TicketError, match=r"plain.ticket: no small network: its origin"):
        gt.load_small(tmp_path / "plain.ticket")


def test_a_model_of_another_architecture_is_not_written():
    _, model, _ = family("dcgan")
    with pytest.raises(TicketError, match="another architecture"):
        small_ticket(model, gt.Masks.dense(model), Architecture("dcgan", 32, 1, {"width": 8, "latent": 6}))


# -- shrinking on another device ------------------------------------------------------------------------------


def test_everything_of_a_model_moves_with_it_what_an_old_norm_derived_too():
    layer = old_spectral_norm(nn.Linear(3, 2))
    layer(torch.ones(1, 3))
    _moved(layer, "meta")
    assert layer.weight.is_meta
    assert layer.weight_orig.is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_model_on_a_gpu_shrinks_and_stays_there():
    _, model, inputs = family("paper-sngan")
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.99, scope="layer")
    on_cpu = gt.shrink(model, masks, inputs)
    on_gpu = gt.shrink(model.cuda(), masks, {name: example.cuda() for name, example in inputs.items()})
    for one, other in zip(on_cpu.parameters(), on_gpu.parameters(), strict=True):
        assert other.is_cuda
        torch.testing.assert_close(one, other.cpu())


# -- programs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv-vae", "linear-autoencoder", "paper-sngan", "paper-resnet-dcgan"])
def test_an_exported_program_is_the_model_at_every_batch_size(name, tmp_path):
    _, model, inputs = family(name)
    model.train()
    for component, example in inputs.items():
        net = getattr(model, component)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        made = export(net, example, tmp_path / f"{component}.pt2")
        assert made.bytes == made.path.stat().st_size
        assert made.difference <= 1e-4
        assert net.training
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        program = torch.export.load(made.path).module()
        expected = clone(net).eval()
        for size in (1, 2, 7):
            batch = torch.randn(size, *example.shape[1:])
            assert_same(expected, program, batch)
            assert len(outputs(program, batch)) == len(outputs(expected, batch))


@pytest.mark.skipif(not HAS_ONNX, reason="the packages for ONNX are not installed")
@pytest.mark.parametrize("name", ["conv-vae", "paper-sngan"])
def test_an_onnx_file_is_the_model_at_every_batch_size(name, tmp_path):
    import onnxruntime

    _, model, inputs = family(name)
    for component, example in inputs.items():
        made = export(getattr(model, component), example, tmp_path / f"{component}.onnx", "onnx")
        session = onnxruntime.InferenceSession(made.path)
        for size in (1, 5):
            batch = torch.randn(size, *example.shape[1:])
            found = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
            for one, other in zip(outputs(getattr(model, component).eval(), batch), found, strict=True):
                torch.testing.assert_close(torch.from_numpy(other), one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [spectral_norm, weight_norm, old_spectral_norm, old_weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_norms_are_folded_into_plain_weights(norm):
    net = nn.Sequential(norm(nn.Conv2d(2, 4, 3)), nn.ReLU(), nn.Flatten(), norm(nn.Linear(16, 3)))
    batch = torch.randn(3, 2, 4, 4)
    net(batch)
    plain = folded(net)
    assert {name for name, _ in plain.named_parameters()} == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert not list(plain.buffers())
    assert net.training
    assert_same(clone(net).eval(), plain, batch)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_folded_into_the_convolution_before_it(affine):
    shared = nn.BatchNorm2d(4)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6, affine=affine), nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2, stride=2), nn.BatchNorm2d(4), nn.Tanh(),
        nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1), shared, nn.ReLU(), shared,
    )  # fmt: skip
    for seed in range(3):
        net(torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 + 1)
    plain = folded(net)
    left = [name for name, layer in plain.named_modules(remove_duplicate=False) if isinstance(layer, nn.BatchNorm2d)]
    assert left == (["7", "9", "11"] if affine else ["1", "7", "9", "11"])
    assert net.training
    assert_same(clone(net).eval(), plain, torch.randn(3, 2, 6, 6))


class WithFeatures(nn.Sequential):
    """Gives what lies between its layers too, as a discriminator of feature matching does."""

    def forward(self, x):
        found = []
        for layer in self:
            found.append(layer(found[-1] if found else x))
        return found[-1], found[:-1]


class Normed(nn.Sequential):
    """Reads a number off a layer of its own."""

    def forward(self, x):
        return super().forward(x) * self[1].running_var.mean()


class Scaled(nn.Conv2d):
    """A learning rate that is the same for all layers, as in StyleGAN."""

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight * 0.7, self.bias * 0.1)


class Shifted(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("kind", "layer", "norm"),
    [
        (WithFeatures, nn.Conv2d, nn.BatchNorm2d),
        (Normed, nn.Conv2d, nn.BatchNorm2d),
        (nn.Sequential, Scaled, nn.BatchNorm2d),
        (nn.Sequential, nn.Conv2d, Shifted),
    ],
    ids=["features", "read", "layer", "norm"],
)
def test_batch_norm_stays_where_it_is_not_all_that_reads_a_plain_convolution(kind, layer, norm, tmp_path):
    net, batch = kind(layer(2, 6, 1), norm(6), nn.ReLU(), nn.Conv2d(6, 1, 1)), torch.randn(5, 2, 3, 3)
    net(2 * batch + 1)
    assert export(net, batch, tmp_path / "a.pt2").difference <= 1e-5
    expected, program = net.eval()(batch), torch.export.load(tmp_path / "a.pt2").module()
    torch.testing.assert_close(program(batch), expected)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Wandering(nn.Module):
    """Computes something else each time."""

    calls = 0.0

    def forward(self, x):
        Wandering.calls += 1
        return x + Wandering.calls


def test_what_cannot_be_exported_leaves_no_file(tmp_path):
    with pytest.raises(GenticketsError, match="cannot be exported as torch"):
        export(Branching(), torch.ones(2, 3), tmp_path / "a.pt2")
    with pytest.raises(GenticketsError, match="differs from the component"):
        export(Wandering(), torch.ones(2, 3), tmp_path / "a.pt2")
    with pytest.raises(GenticketsError, match="'tflite': one of torch, onnx"):
        export(nn.Linear(3, 2), torch.ones(2, 3), tmp_path / "a.pt2", "tflite")
    broken = nn.Linear(3, 2)
    nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(GenticketsError, match="not finite for the example"):
        export(broken, torch.ones(2, 3), tmp_path / "a.pt2")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(GenticketsError, match="cannot write"):
        export(nn.Linear(3, 2), torch.ones(2, 3), tmp_path / "file" / "a.pt2")


class Conditional(nn.Module):
    """Takes an image, a time and a scale, and gives a dictionary."""

    def __init__(self):
        super().__init__()
        self.image, self.time = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(1, 4)

    def forward(self, x, t=None, scale=1.0):
        h = self.image(x) if t is None else self.image(x) + self.time(t[:, None])[:, :, None, None]
        return {"noise": h * scale, "mean": (h.mean(), x)}


@pytest.mark.parametrize(
    "example",
    [
        (torch.randn(3, 1, 4, 4), torch.rand(3)),
        {"t": torch.rand(3), "x": torch.randn(3, 1, 4, 4), "scale": 2.0},
        [torch.randn(3, 1, 4, 4), None, 3],
    ],
)
def test_programs_take_what_their_component_takes_and_give_what_it_gives(example, tmp_path):
    net = Conditional()
    made = export(net, example, tmp_path / "net.pt2")
    assert made.compared == 3 * 4 * 16 + 1 + 3 * 16 + 4 * 16 + 1 + 16  # of the batch of three, and of one
    program = torch.export.load(made.path).module()
    given = Example.of(example, "net")
    for part in (given, given.first(2)):
        for expected, found in zip(named_tensors(part(net)), named_tensors(part(program)), strict=True):
            assert expected[0] == found[0]
            torch.testing.assert_close(found[1], expected[1])


def test_the_format_is_what_the_file_is_called(tmp_path, monkeypatch):
    for name in ("net.bin", "net", "net.pt"):
        with pytest.raises(GenticketsError, match=r"ends in none of \.pt2 .*, \.onnx .* and \.safetensors"):
            export(nn.Linear(3, 2), torch.ones(2, 3), tmp_path / name)
    with pytest.raises(GenticketsError, match=r"net\.safetensors would hold weights alone, .* save_small\(small, path"):
        export(nn.Linear(3, 2), torch.ones(2, 3), tmp_path / "net.safetensors")
    made = gt.export(nn.Linear(3, 2), torch.ones(2, 3), tmp_path / "net.bin", "torch")
    assert made.path.read_bytes()[:2] == b"PK"
    with pytest.raises(GenticketsError, match=r"net\.onnx is to hold a program of format torch, but ends as .* onnx"):
        export(nn.Linear(3, 2), torch.ones(2, 3), tmp_path / "net.onnx", "torch")
    with pytest.raises(GenticketsError, match=r"format onnx, but ends as one of torch: .*\*\.onnx"):
        export(nn.Linear(3, 2), torch.ones(2, 3), tmp_path / "net.pt2", "onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GenticketsError, match="format onnx needs onnx"):
        export(nn.Linear(3, 2), torch.ones(2, 3), tmp_path / "net.onnx")


class Large(nn.Module):
    """Does something else with batches of 64 and more, as some decoders do for want of memory."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x) if x.shape[0] < 64 else self.layer(x.contiguous()) * 1


def test_a_program_says_up_to_which_batch_it_goes(tmp_path):
    made = export(Large(), torch.ones(2, 3), tmp_path / "net.pt2")
    assert made.most == 63
    program = torch.export.load(made.path).module()
    assert program(torch.ones(63, 3)).shape == (63, 2)
    assert export(nn.Linear(3, 2), torch.ones(2, 3), tmp_path / "net.pt2").most is None


class Silent(nn.Module):
    def forward(self, x):
        return None


def test_a_program_of_which_nothing_can_be_compared_is_not_written(tmp_path):
    with pytest.raises(GenticketsError, match="nothing can be compared"):
        export(Silent(), torch.ones(2, 3), tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_rounding_of_a_coarse_dtype_is_no_difference(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 3, 3)).bfloat16()
    for _ in range(3):
        net(torch.randn(8, 3, 8, 8).bfloat16() + 1)
    assert export(net, torch.randn(2, 3, 8, 8).bfloat16(), tmp_path / "net.pt2").compared == 3 * 3 * 16


# -- levels ---------------------------------------------------------------------------------------------------


def test_a_level_whose_channels_were_pruned(gentickets, run):
    done = gentickets("shrink", "runs/tiny/seed-0/level-01", "--out", "small.safetensors")
    assert "had gone before the level was trained" in done.stdout
    assert "a reading on this machine" in done.stdout
    assert "results: small.safetensors" in done.stdout
    loaded = gt.load_small(gentickets.here / "small.safetensors")
    level = run / "seed-0" / "level-01"
    counted = json.loads((level / "metrics.json").read_text())["cost"]["parameters"]
    assert sum(p.numel() for p in loaded.parameters()) <= counted
    shipment = of_level(level)
    averaged = disk.load_weights(level / "averaged.safetensors")  # what the level is judged by
    assert torch.equal(shipment.model.state_dict()["decoder.layers.0.weight"], averaged["decoder.layers.0.weight"])
    for component, example in shipment.examples.items():
        assert_same(getattr(shipment.model, component), getattr(loaded, component), example)


def test_a_dense_level_says_that_nothing_is_pruned(run, tmp_path):
    shrunk = shrink_to(of_level(run / "seed-0" / "level-00"), tmp_path / "small.safetensors")
    assert shrunk.before == shrunk.after
    assert shrunk.time == {}
    assert shrunk.removed == {"encoder": 0, "decoder": 0}
    assert shrunk.words == ("No channel could go: nothing is pruned at this level, which is the dense network.",)


def test_a_ticket_file_with_its_recipe(called, gentickets, run):
    ticket = gt.Ticket.load(run / "seed-0" / "level-00" / "ticket.safetensors")
    model = models.CATALOGUE["conv-vae"](8, 1, width=8, latent=4)
    for sparsity, nothing in ((0.5, True), (0.98, False)):
        masks = gt.prune(gt.magnitude(ticket.install(model)), to_sparsity=sparsity, scope="layer")
        gt.Ticket(masks, ticket.weights).save(gentickets.here / "x.ticket")
        done = called("shrink", "x.ticket", "--recipe", "recipe.yaml", "--out", "x.safetensors")
        assert ("No channel could go. The ticket is 50.0% sparse" in done.out) == nothing
        assert ("a reading on this machine" in done.out) != nothing
    size = sum(p.numel() for p in gt.load_small(gentickets.here / "x.safetensors").parameters())
    assert size < sum(p.numel() for p in model.parameters())
    assert "add --recipe" in called("shrink", "x.ticket", expect=2).err
    assert "is (" in called("shrink", "x.ticket", "model.width=4", "--recipe", "recipe.yaml", expect=2).err
    gt.Ticket(ticket.masks).save(gentickets.here / "x.ticket")
    assert "masks without weights" in called("shrink", "x.ticket", "--recipe", "recipe.yaml", expect=2).err


@pytest.mark.parametrize("shrink", ["--shrink", "--no-shrink"])
def test_a_component_of_a_level_as_a_program(called, gentickets, run, shrink):
    done = called("export", "runs/tiny/seed-0/level-01", "--component", "encoder", shrink)
    assert "largest difference" in done.out
    assert "results: encoder.pt2" in done.out
    program = torch.export.load(gentickets.here / "encoder.pt2").module()
    net = of_level(run / "seed-0" / "level-01").model.encoder
    assert_same(net, program, torch.randn(5, 1, 8, 8))
    assert len(outputs(program, torch.randn(1, 1, 8, 8))) == 2


def test_the_suffix_says_what_is_written(called, gentickets, run, tmp_path):
    level = "runs/tiny/seed-0/level-01"
    net = of_level(run / "seed-0" / "level-01").model.decoder
    for command in ("shrink", "export"):
        done = called(command, level, "--component", "decoder", "--out", tmp_path / "d.safetensors")
        assert "make_model=…) reads it" in done.out
        loaded = gt.load_small(
            tmp_path / "d.safetensors", make_model=lambda: models.CATALOGUE["conv-vae"](8, 1, width=8, latent=4).decoder
        )
        assert_same(net, loaded, torch.randn(3, 4))
        assert (
            "d.bin ends in none of .pt2" in called(command, level, "--component=decoder", "--out=d.bin", expect=2).err
        )
    called("shrink", level, "--component", "decoder", "--out", tmp_path / "d.pt2")
    assert_same(net, torch.export.load(tmp_path / "d.pt2").module(), torch.randn(3, 4))
    told = called("shrink", level, "--out", tmp_path / "d.pt2", expect=2).err
    assert "a program is one component: add --component, one of encoder, decoder" in told
    if HAS_ONNX:
        import onnx

        called("shrink", level, "--component", "decoder", "--out", tmp_path / "d.onnx")
        onnx.load(tmp_path / "d.onnx")


def test_mistakes_are_one_line_that_says_what_to_do(called, gentickets, run):
    def complaint(*arguments):
        return called(*arguments, expect=2).err.strip()

    level = "runs/tiny/seed-0/level-01"
    told = gentickets("export", level, "--component", "generator", expect=2).stderr.strip()
    assert "'generator': the model has encoder, decoder" in told
    assert len(told.splitlines()) == 1
    assert "'tflite': one of torch, onnx" in complaint("export", level, "--component", "decoder", "--format", "tflite")
    if not HAS_ONNX:
        told = complaint("export", level, "--component", "decoder", "--format", "onnx")
        assert "pip install onnx onnxscript onnxruntime" in told
        assert len(told.splitlines()) == 1
    assert "such as runs/tiny/seed-0/level-01" in complaint("shrink", "runs/tiny")
    assert "--recipe and key=value go with a ticket file" in complaint("shrink", level, "model.width=4")


def test_levels_that_cannot_be_handed_out(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    seed = tmp_path / "run" / "seed-0"
    publishing.partial_of(seed / "level-02").mkdir()
    for place in (seed / "level-02", publishing.partial_of(seed / "level-02")):
        with pytest.raises(GenticketsError, match="is not complete"):
            of_level(place)
    with pytest.raises(GenticketsError, match="no level's folder: it looks like"):
        of_level(tmp_path / "nowhere")
    level = seed / "level-01"
    (level / "trained.safetensors").unlink()
    with pytest.raises(GenticketsError, match=r"trained.safetensors is missing: `gentickets work"):
        of_level(level)
    facts = json.loads((level / "metrics.json").read_text())
    disk.write_json(level / "metrics.json", {**facts, "status": "disconnected", "reason": "decoder.0 is cut"})
    with pytest.raises(GenticketsError, match=r"is disconnected \(decoder.0 is cut\)"):
        of_level(level)


@pytest.mark.parametrize("changes", [
    {"options": {"depth": 2**40}}, {"options": {"depth": 10**7}}, {"options": {"hidden": [1] * 10**6}},
    {"options": {"depth": 2**64}}, {"size": "F4", "channels": 2**31}, {"channels": 2**31}, {"size": 10**9},
    {"size": True}, {"size": [16, 16]}, {"options": {"width": 1.5}}, {"options": [["width", 8]]}, {"options": None},
    {"model": ["linear-autoencoder"]}, {"more": 1}, {"options": {"width": "16"}}, {"options": {"hidden": [2**64]}},
])  # fmt: skip
def test_a_file_cannot_ask_for_more_than_it_can_fill(changes):
    network = {
        "model": "linear-autoencoder",
        "size": 8,
        "channels": 1,
        "options": {"width": 8, "depth": 1},
        "sizes": {},
    }
    ticket = gt.Ticket(gt.Masks({}), {"encoder.1.weight": torch.zeros(2, 2)}, {"network": {**network, **changes}})
    with pytest.raises(gt.TicketError, match="no small network") as caught:
        rebuilt(ticket)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
