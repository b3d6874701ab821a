"""The page on a smaller decoder: its files run as they stand, and its table is that of its csv."""

import re
import runpy
from pathlib import Path

import pytest
import torch

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
