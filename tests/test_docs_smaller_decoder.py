"""The page on a smaller decoder: its files run as they stand, and its table is that of its csv."""

import csv
import math
import re
import runpy
import statistics
from pathlib import Path

import pytest
import torch

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "small-decoder-desk.csv"
PAGE = (Path(__file__).parents[1] / "docs" / "smaller-decoder.md").read_text(encoding="utf-8")
FILES = {code.split("\n", 1)[0][2:]: code for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)}


@pytest.mark.models
def test_the_decoder_is_put_back_saved_and_read_again(tmp_path, monkeypatch, capsys):
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    for name, code in FILES.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        made = runpy.run_path(str(tmp_path / "small_vae.py"))
    vae, config = made["vae"], made["config"]
    before, now = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", capsys.readouterr().out)[:2])
    assert now <= before // 3 == made["asked"]
    assert sum(weight.numel() for weight in vae.decoder.parameters()) == now
    whole = diffusers.AutoencoderKL(**config)
    assert min(layer.out_channels for layer in _convolutions(vae.decoder)[:-1]) >= 0.25 * 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        same = diffusers.AutoencoderKL(**config)
    assert all(map(torch.equal, same.encoder.state_dict().values(), vae.encoder.state_dict().values()))
    read = runpy.run_path(str(tmp_path / "load_vae.py"))["with_small_decoder"](
        whole, "decoder.ticket", "decoder.safetensors"
    )
    codes = torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        assert torch.equal(read.decode(codes).sample, vae.decode(codes).sample)


def _convolutions(net):
    return [layer for layer in net.modules() if isinstance(layer, torch.nn.Conv2d)]


def test_the_files_are_short():
    assert set(FILES) == {"small_vae.py", "load_vae.py"}
    assert all(len(code.splitlines()) <= 70 for code in FILES.values())


NETWORKS = {
    "dense decoder": ("dense", "ticket"),
    "best channels": ("ticket", "ticket"),
    "random channels": ("ticket", "random_mask"),
    "small dense decoder": ("born-small", "ticket"),
    "small dense decoder, twice the steps": ("born-small-longer", "ticket"),
}


def lines():
    """The table, from the csv: means over the seeds, and the errors of each."""
    with RESULTS.open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["seed"]))
    for name, place in NETWORKS.items():
        mine = [row for row in rows if (row["arm"], row["kind"]) == place]
        mean = {key: statistics.mean(float(row[key]) for row in mine) for key in ("parameters", "flops", "decode")}
        errors = [float(row["reconstruction_mse"]) for row in mine]
        psnr = statistics.mean(10 * math.log10(4 / error) for error in errors)
        cells = [
            name,
            mine[0]["steps"],
            f"{mean['parameters']:,.0f}",
            f"{mean['flops'] / 1e6:.1f}",
            "1" if place[0] == "dense" else f"{mean['decode']:.2f}",
            ", ".join(f"{error:.4f}" for error in errors),
            f"{psnr:.1f}",
        ]
        yield f"| {' | '.join(cells)} |"


def test_the_table_is_what_its_csv_says():
    assert [line for line in lines() if line not in PAGE] == []
    with RESULTS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["arm"], row["kind"]) for row in rows} == set(NETWORKS.values())
    assert all(int(row["flops"]) <= 14_500_000 for row in rows if row["arm"] != "dense")
