"""What a GPU computes, beside the CPU: trainings, criteria, smaller networks, whole runs.

Skipped where there is no CUDA device. GENTICKETS_TEST_DEVICE=cpu rehearses it without one; "elsewhere" does what is no
whole run on a pretended device, where tensors of two devices do not mix either (`test_elsewhere.py`).
"""

from __future__ import annotations

import copy
import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import elsewhere
import gentickets as gt
import two_ranks
from gentickets import models
from gentickets.channels.shrinking import Shrinking
from gentickets.masks.names import clone, named_state
from gentickets.pruning.criteria import by_grasp, by_snip
from gentickets.training import Checkpoint, Settings, train
from gentickets.training.devices import one_device

DEVICE = os.environ.get("GENTICKETS_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device")
trains = pytest.mark.skipif(DEVICE == "elsewhere", reason="a run knows no pretended device")

STEPS = Settings(steps=12, batch_size=8, ema=0.9, clip_norm=1.0, weight_decay=0.01, lr=3e-3, execution="dense")
SINGLE = ["ae", "vae", "gan"]


@pytest.fixture(autouse=True)
def float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions take TF32 by default on a GPU: three digits, and no comparison."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def place() -> Iterator[None]:
    with elsewhere.pretended() if DEVICE == "elsewhere" else nullcontext():
        yield


def family(name: str) -> tuple[nn.Module, gt.Objective]:
    torch.manual_seed(1)
    if name == "ae":
        return models.linear_autoencoder(8, 1, width=8, latent=2), gt.Autoencoding()
    if name == "vae":
        return models.conv_vae(8, 1, width=4, latent=3), gt.ELBO(3, warmup_steps=5)
    return models.dcgan(8, 1, width=4, latent=3), gt.Adversarial(3)


def half(model: nn.Module) -> gt.Masks:
    return gt.prune(gt.magnitude(model), fraction=0.5)


def trained(model: nn.Module, objective: gt.Objective, settings: Settings = STEPS, **beside: Any) -> Any:
    """There and back: trained on the device, by batches of the CPU, and left on the CPU."""
    if DEVICE == "elsewhere" and settings.precision != "32-true":
        pytest.skip("nothing is cast by itself on a pretended device")
    fabric = elsewhere.fabric() if DEVICE == "elsewhere" else one_device(DEVICE, settings.precision)
    found = train(model, objective, two_ranks.Source(), settings, fabric=fabric, **beside)
    assert all(tensor.device.type == DEVICE for tensor in model.parameters())
    model.cpu()
    return found


def test_a_training_is_that_of_the_cpu() -> None:
    """Of what draws no noise: each device has draws of its own."""
    model, objective = family("ae")
    masks, other = half(model), clone(model)
    few = Settings(**{**STEPS.__dict__, "steps": 3})
    trained(model, objective, few, masks=masks)
    train(other, objective, two_ranks.Source(), few, masks=masks)
    for key, tensor in named_state(other).items():
        torch.testing.assert_close(named_state(model)[key], tensor, atol=2e-4, rtol=2e-3, msg=key)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("name", SINGLE)
def test_what_is_pruned_stays_zero_in_weights_and_averages(name: str, precision: str) -> None:
    model, objective = family(name)
    masks = half(model)
    found = trained(model, objective, Settings(**{**STEPS.__dict__, "precision": precision}), masks=masks)
    for net in (model, *([found.averaged] if found.averaged is not None else [])):
        weights = dict(net.named_parameters())
        for key in masks.keys() & weights.keys():
            assert not weights[key].cpu()[~masks[key]].any(), key
            assert torch.isfinite(weights[key]).all()


@pytest.mark.skipif(DEVICE == "elsewhere", reason="torch reads no file of a pretended device")
@pytest.mark.filterwarnings("error:.*begins anew")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
@pytest.mark.parametrize("name", SINGLE)
def test_a_stopped_training_goes_on(name: str, precision: str, tmp_path: Path) -> None:
    settings = Settings(**{**STEPS.__dict__, "precision": precision})
    model, objective = family(name)
    masks, cut = half(model), clone(model)
    trained(model, objective, settings, masks=masks)
    asked = iter([False] * 4 + [True])
    checkpoint = Checkpoint(tmp_path / "c.pt", "key", every=1e9)
    with pytest.raises(KeyboardInterrupt):
        trained(clone(cut), objective, settings, masks=masks, checkpoint=checkpoint, stop=lambda: next(asked))
    torch.manual_seed(99)
    trained(cut, objective, settings, masks=masks, checkpoint=checkpoint)
    worst = max(
        float((named_state(cut)[key].float() - tensor.float()).abs().max())
        for key, tensor in named_state(model).items()
    )
    print(f"{name}, {precision}: resumed and whole differ by {worst:.1e}")
    assert worst <= 1e-5  # the same to the bit where cuDNN's kernels are deterministic


@pytest.mark.parametrize("criterion", [gt.snip, gt.grasp])
def test_gradients_score_alike(criterion: Any) -> None:
    model, objective = family("ae")
    batches = [two_ranks.IMAGES[:16]]
    expected = criterion(model, objective, batches)
    found = criterion(copy.deepcopy(model).to(DEVICE), objective, [batch.to(DEVICE) for batch in batches])
    for key, scores in expected.items():
        close = 1e-3 * float(scores.abs().max()) + 1e-9
        torch.testing.assert_close(found[key].cpu(), scores, atol=close, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", ["vae", "gan"])
def test_what_draws_noise_is_scored_too(name: str) -> None:
    model, objective = family(name)
    found = gt.snip(model.to(DEVICE), objective, [two_ranks.IMAGES[:16].to(DEVICE)])
    assert found.keys() == gt.Masks.dense(model).keys()
    assert all(scores.device.type == DEVICE and torch.isfinite(scores.cpu()).all() for scores in found.values())


class OnDevice(two_ranks.Source):
    """Batches that lie where they are trained on, as a run's do."""

    def at(self, step: int) -> Any:
        return super().at(step).to(DEVICE)


@pytest.mark.parametrize("criterion", [by_snip, by_grasp])
def test_a_model_that_waits_for_its_training_is_scored_where_it_will_be(criterion: Any) -> None:
    model, objective = family("ae")
    before, masks = copy.deepcopy(model.state_dict()), gt.Masks.dense(model)
    expected = criterion(model, masks, objective=objective, batches=two_ranks.Source(), seed=1, score_batches=2)
    found = criterion(model, masks, objective=objective, batches=OnDevice(), seed=1, score_batches=2)
    for key, scores in expected.items():
        assert found[key].device.type == "cpu"
        close = 1e-3 * float(scores.abs().max()) + 1e-9
        torch.testing.assert_close(found[key], scores, atol=close, rtol=1e-3, msg=key)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_synflow_prunes_the_same() -> None:
    model, _ = family("gan")
    inputs = {"generator": torch.randn(2, 3), "discriminator": torch.randn(2, 1, 8, 8)}
    expected = gt.synflow_masks(model, inputs, 0.8, iterations=5)
    moved = {name: example.to(DEVICE) for name, example in inputs.items()}
    assert gt.synflow_masks(model.to(DEVICE), moved, 0.8, iterations=5) == expected


NETWORKS = {
    "dcgan": lambda: models.dcgan(16, 1, width=8, latent=6),
    "conv-vae": lambda: models.conv_vae(16, 1, width=8, latent=6),
    "unet": lambda: models.unet(8, 1, width=4, zero_output=False),
}
EXAMPLES: dict[str, Any] = {
    "dcgan": {"generator": torch.randn(3, 6), "discriminator": torch.randn(3, 1, 16, 16)},
    "conv-vae": {"encoder": torch.randn(3, 1, 16, 16), "decoder": torch.randn(3, 6)},
    "unet": {"denoiser": (torch.randn(3, 1, 8, 8), torch.tensor([1, 5, 9]))},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_shrinks_where_it_is(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = NETWORKS[name](), EXAMPLES[name]
    groups = gt.channel_groups(model, inputs)
    masks = gt.prune(gt.magnitude(model), fraction=0.5, granularity="channel", groups=groups)
    on_cpu = gt.shrink(model, masks, inputs)
    moved = {key: _moved(example) for key, example in inputs.items()}
    assert (
        gt.prune(
            gt.magnitude(model.to(DEVICE)), fraction=0.5, granularity="channel", groups=gt.channel_groups(model, moved)
        )
        == masks
    )
    small = gt.shrink(model, masks, moved)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    for one, other in zip(on_cpu.parameters(), small.parameters(), strict=True):
        assert other.device.type == DEVICE
        assert torch.equal(one, other.cpu())


def test_the_state_of_an_optimiser_goes_to_where_the_smaller_network_is() -> None:
    torch.manual_seed(0)
    model, inputs = NETWORKS["dcgan"](), EXAMPLES["dcgan"]
    old = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    old.step()
    groups = gt.channel_groups(model, inputs)
    masks = gt.prune(gt.magnitude(model), fraction=0.5, granularity="channel", groups=groups)
    shrinking = Shrinking(model, masks, inputs)
    small = shrinking.model.to(DEVICE)
    new = torch.optim.AdamW(small.parameters(), fused=DEVICE == "cuda")
    shrinking.carry_state(old, new, model)
    for parameter in small.parameters():
        assert new.state[parameter]["exp_avg"].device == parameter.device
        parameter.grad = torch.ones_like(parameter)
    new.step()


def _moved(example: Any) -> Any:
    return tuple(map(_moved, example)) if isinstance(example, tuple) else example.to(DEVICE)


@trains
def test_a_held_network_steps_with_torchs_own_optimisers_and_scaler() -> None:
    model, _ = family("ae")
    masks = half(model)
    model.to(DEVICE)
    for make in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop):
        optimizer = make(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler(DEVICE)
        with masks.hold(model, optimizer):
            for step in range(4):
                images = two_ranks.Source().at(step).to(DEVICE)
                with torch.autocast(DEVICE, torch.float16):
                    loss = (model.decoder(model.encoder(images)) - images).square().mean()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        weights = dict(model.named_parameters())
        assert all(not weights[key].cpu()[~masks[key]].any() for key in masks)


def test_sparse_execution_stays_off() -> None:
    if DEVICE == "cpu":
        pytest.skip("the kernels are for CPUs")
    model, _ = family("gan")
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.9)
    masks.apply_(model)
    inputs = {"generator": torch.randn(8, 3), "discriminator": torch.randn(8, 1, 8, 8)}
    before = {key: type(layer) for key, layer in model.to(DEVICE).named_modules()}
    with gt.accelerate(model, masks, {key: example.to(DEVICE) for key, example in inputs.items()}):
        assert {key: type(layer) for key, layer in model.named_modules()} == before


def test_a_ticket_of_a_gpu_is_read_without_one(tmp_path: Path) -> None:
    model, _ = family("gan")
    masks = half(model)
    on_cpu, on_gpu = gt.Ticket(masks, clone(model).state_dict()), gt.Ticket(masks, model.to(DEVICE).state_dict())
    on_cpu.save(tmp_path / "cpu.safetensors")
    on_gpu.save(tmp_path / "gpu.safetensors")
    assert (tmp_path / "cpu.safetensors").read_bytes() == (tmp_path / "gpu.safetensors").read_bytes()
    fresh, _ = family("gan")
    gt.Ticket.load(tmp_path / "gpu.safetensors").install(fresh)
    assert all(p.device.type == "cpu" for p in fresh.parameters())


RECIPE = {
    "name": "gpu",
    "model": {"name": "dcgan", "width": 8, "latent": 6},
    "data": {"source": "digits", "size": 16},
    "objective": {"name": "adversarial"},
    "training": {"steps": 40, "batch_size": 16, "accelerator": DEVICE, "ema": 0.9},
    "search": {"rounds": 2, "fraction": 0.5, "rewind_step": 4},
    "controls": {"levels": [2]},
    "evaluation": {"samples": 300, "classifiers": 1},
    "seeds": [0],
}


@pytest.fixture
def program(tmp_path: Path) -> Any:
    environment = {**os.environ, "GENTICKETS_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(recipe: dict[str, Any], *command: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        prefix = [sys.executable, "-m", *(command or ("gentickets",))]
        done = subprocess.run(
            [*prefix, "find", "recipe.yaml"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as lines:
        return list(csv.DictReader(lines))


CHANNELS = {
    "search": {
        "method": "early-bird", "granularity": "channel", "scope": "component", "rounds": 1, "fraction": 0.5,
        "window": 2, "tolerance": 0.9, "interval": 4,
    },
    "controls": {"levels": [1]},
}  # fmt: skip
BFLOAT16 = {"training": {**RECIPE["training"], "precision": "bf16-mixed"}}  # type: ignore[dict-item]


@trains
@pytest.mark.parametrize("change", [{}, CHANNELS, BFLOAT16], ids=["imp", "channels", "bf16"])
def test_a_run_goes_from_its_recipe_to_its_page(program: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    done = program({**RECIPE, **change})
    assert done.returncode == 0, done.stderr
    rows = results(tmp_path / "runs" / "gpu")
    assert rows
    assert (tmp_path / "runs" / "gpu" / "report.html").exists()


@trains
def test_a_process_of_torchrun_has_a_gpu_of_its_own(program: Any, tmp_path: Path) -> None:
    change = {"training": {**RECIPE["training"], "devices": 1}}  # type: ignore[dict-item]
    done = program(
        {**RECIPE, **change}, "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m", "gentickets"
    )
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "runs" / "gpu")


@trains
def test_more_gpus_than_there_are_is_one_line(program: Any) -> None:
    if DEVICE == "cpu":
        pytest.skip("processors share one machine")
    done = program({**RECIPE, "training": {**RECIPE["training"], "devices": 64}})  # type: ignore[dict-item]
    assert done.returncode != 0
    assert "training.devices=64" in done.stderr
