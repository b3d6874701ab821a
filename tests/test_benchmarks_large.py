"""The account of a large model: that each thing is done, and told by what was held; not how much that is."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `benchmarks` is no part of what is installed

from benchmarks.large import autoencoder, main  # noqa: E402


def test_every_thing_is_done_and_told(tmp_path, capsys):
    assert main(["--millions", "0.05", "--folder", str(tmp_path), "--out", str(tmp_path / "large.json")]) == 0
    document = json.loads((tmp_path / "large.json").read_text())
    rows = document["rows"]
    assert len({row["what"] for row in rows}) == len(rows) == 18
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 10**7 < row["held_bytes"] for row in rows)
    out = capsys.readouterr().out
    assert all(row["what"] in out for row in rows)
    assert [path.name for path in tmp_path.iterdir()] == ["large.json"]


def test_a_model_has_about_as_many_weights_as_were_asked_for():
    for weights in (1e6, 3e7):
        total = sum(weight.numel() for weight in autoencoder(weights).parameters())
        assert 0.9 < total / weights < 1.6
