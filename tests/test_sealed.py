"""No bit of a file of state can change unnoticed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from gentickets.sealed import Damaged, sealed, sealed_state, sealed_tensors, unsealed, unsealed_state, unsealed_tensors
from gentickets.training.progress import Checkpoint, Curve, Progress

STATE = {"step": 3, "model": {"w": torch.arange(6.0)}, "rng": torch.get_rng_state()[:8], "watches": [{"a": [1.5]}]}
TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7), "empty": torch.zeros(0, 2)}


@given(st.binary(max_size=200), st.data())
def test_what_was_sealed_comes_back_and_no_changed_bit_does(content, data):
    raw = sealed(content)
    assert unsealed(raw) == content
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    with pytest.raises(Damaged):
        unsealed(flipped(raw, bit))
    with pytest.raises(Damaged):
        unsealed(raw[: data.draw(st.integers(0, len(raw) - 1))])


def flipped(raw: bytes, bit: int) -> bytes:
    return raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :]


@pytest.mark.parametrize("kind", ["state", "tensors"])
def test_every_flipped_bit_is_damage_or_changes_nothing(kind):
    raw = sealed_state(STATE) if kind == "state" else sealed_tensors(TENSORS, {"accuracy": "0.5"})
    unharmed = 0
    for bit in range(0, 8 * len(raw), 1 if kind == "tensors" else 11):
        try:
            found = unsealed_state(flipped(raw, bit)) if kind == "state" else unsealed_tensors(flipped(raw, bit))[0]
        except Damaged:
            continue
        # A file whose word "digest" is damaged is taken for one of before files had digests: its tensors are whole.
        unharmed += 1
        assert kind == "tensors"
        assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert unharmed <= 8 * len('"digest":')


def test_tensors_are_a_plain_safetensors_file_with_their_metadata():
    raw = sealed_tensors(TENSORS, {"accuracy": "0.5"})
    assert all(torch.equal(load(raw)[name], tensor) for name, tensor in TENSORS.items())
    assert unsealed_tensors(raw)[1] == {"accuracy": "0.5"}
    one, other = {"b": "1", "accuracy": "0.5"}, {"accuracy": "0.5", "b": "1"}
    assert all(sealed_tensors(TENSORS, one) == sealed_tensors(TENSORS, other) for _ in range(20))
    older = save(TENSORS)
    assert set(unsealed_tensors(older)[0]) == set(TENSORS)


@pytest.mark.parametrize("raw", [b"", b"x", b"gentickets.sealed/1 ", sealed(b""), sealed(b"no state"), b"PK\x03\x04"])
def test_what_holds_no_state_is_damaged(raw):
    with pytest.raises(Damaged):
        unsealed_state(raw)


@pytest.mark.parametrize("raw", [b"", b"12345678", b"\xff" * 40, (8).to_bytes(8, "little") + b"[[[[[[[["])
def test_what_holds_no_tensors_is_damaged(raw):
    with pytest.raises(Damaged):
        unsealed_tensors(raw)


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[:-1], lambda raw: flipped(raw, 4000), bytes])
def test_a_damaged_checkpoint_is_dropped_aloud(tmp_path, damage):
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "key")
    checkpoint.save(STATE)
    assert checkpoint.load()["step"] == 3
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()) if damage is not bytes else bytes(path.stat().st_size))
    with pytest.warns(UserWarning, match=r"checkpoint.pt is damaged .*: dropped, and this training begins anew"):
        assert checkpoint.load() is None
    assert not path.exists()
    assert checkpoint.load() is None


def test_damaged_lines_of_a_curve_are_dropped(tmp_path):
    curve = Curve(tmp_path / "curve.jsonl")
    for step in (1, 2, 3):
        curve.add(Progress(step, {"loss": 1.0}, 1.0))
    with open(curve.path, "a") as file:
        file.write('{"step": }\n[1]\n{"loss": 2}\n{"step": "x"}\n{"st')
    curve.rewind(2)
    assert [line[:10] for line in curve.path.read_text().splitlines()] == ['{"step": 1', '{"step": 2']
