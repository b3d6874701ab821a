"""Signed tickets: every bit that a ticket holds is covered, and each way in which one is not what it says is a line."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import nn

from gentickets import GenticketsError, Masks, Ticket, TicketError
from gentickets.cli import main
from gentickets.masks.signing import make_keys
from gentickets.masks.ticket import FORMAT
from gentickets.sealed import BLANK, DIGEST, field

cryptography = pytest.importorskip("cryptography")
from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key  # noqa: E402
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey  # noqa: E402


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_keys(tmp_path / "mine")
    return tmp_path / "mine"


def public(key: Path) -> Path:
    return key.with_name(key.name + ".pub")


@pytest.fixture
def ticket() -> Ticket:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    return Ticket(Masks({"0.weight": torch.rand(4, 3) < 0.5}), model, {"seed": 1, "ü": [None, 0.1]})


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs the program here: (exit code, output, complaints)."""
    monkeypatch.setenv("COLUMNS", "400")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gentickets", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code or 0, *capsys.readouterr()

    return run


def content(raw: bytes) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"], from_safetensors(raw)


def forged(meta: dict[str, str], tensors: dict[str, torch.Tensor]) -> bytes:
    """A file whose digest fits, as anybody can write one."""
    raw = to_safetensors(tensors, metadata=meta | {"digest": BLANK})
    return raw.replace(field(BLANK), field(hashlib.sha256(raw).hexdigest()))


def test_a_signed_ticket_is_one_file_that_its_key_verifies(ticket, keys, tmp_path):
    unsigned = ticket.fingerprint
    ticket.sign(keys).save(tmp_path / "t")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("t")] == ["t"]
    loaded = Ticket.load(tmp_path / "t")
    assert loaded.fingerprint == unsigned
    assert loaded.to_bytes() == (tmp_path / "t").read_bytes()
    for by in (public(keys), str(public(keys)), loaded.signature.signer):
        loaded.verify(by)
    private = serialization.load_ssh_private_key(keys.read_bytes(), None)
    loaded.verify(private.public_key())
    # The same by the library alone: what is signed is a fixed word and the fingerprint.
    key = Ed25519PublicKey.from_public_bytes(loaded.signature.key)
    key.verify(loaded.signature.value, b"gentickets.ticket.signature/1\n" + unsigned.encode())


def test_a_reader_that_knows_of_no_signatures_finds_the_same_ticket(ticket, keys):
    """What the first version reads: the same format, a digest that fits, and tensors and facts as without one."""
    plain, meta = content(ticket.to_bytes()), content(ticket.sign(keys).to_bytes())
    raw = ticket.to_bytes()
    [digest] = DIGEST.findall(raw[: 8 + int.from_bytes(raw[:8], "little")])
    blank = raw.replace(field(digest.decode()), field(BLANK))
    assert hashlib.sha256(blank).hexdigest() == digest.decode()
    assert {**plain[0], "digest": ""} == {key: value for key, value in meta[0].items() if key != "signature"} | {
        "digest": ""
    }
    assert meta[0]["format"] == FORMAT
    assert {name: tensor.tolist() for name, tensor in plain[1].items()} == {
        name: tensor.tolist() for name, tensor in meta[1].items()
    }


def test_every_byte_of_tensors_and_metadata_is_covered_whoever_mends_the_digest(ticket, keys, tmp_path):
    path = tmp_path / "t"
    meta, tensors = content(ticket.sign(keys).to_bytes())
    path.write_bytes(forged(meta, tensors))
    Ticket.load(path).verify(public(keys))  # laid out by somebody else, and still what was signed
    changed = []
    for name, tensor in tensors.items():
        flat = tensor.clone().contiguous().reshape(-1).view(torch.uint8)
        for at in range(len(flat)):
            other = flat.clone()
            other[at] ^= 1 << (at % 8)
            changed.append((meta, tensors | {name: other.view(tensor.dtype).reshape(tensor.shape)}))
        changed.append((meta, {key: value for key, value in tensors.items() if key != name}))
        changed.append((meta, {("x" + key if key == name else key): value for key, value in tensors.items()}))
    changed += [
        (meta | {"origin": meta["origin"].replace("1", "2")}, tensors),
        (meta | {"origin": "{}"}, tensors),
        (meta | {"shapes": '{"0.weight": [3, 4]}'}, tensors),
        (meta | {"more": "x"}, tensors),
        (meta, tensors | {"more": torch.ones(1)}),
        (meta, tensors | {"mask/1.weight": torch.ones(1, dtype=torch.uint8)}),
        (meta, tensors | {"weight/0.bias": tensors["weight/0.bias"].to(torch.float64)}),
    ]
    for number, (facts, parts) in enumerate(changed):
        path.write_bytes(forged(facts, parts))
        with pytest.raises(TicketError) as caught:
            Ticket.load(path).verify(public(keys))
        assert "\n" not in str(caught.value), number
    signature = json.loads(meta["signature"])
    for key in signature:
        for wrong in ("", "AAAA", signature[key][::-1], 7, None):
            path.write_bytes(forged(meta | {"signature": json.dumps(signature | {key: wrong})}, tensors))
            with pytest.raises(TicketError):
                Ticket.load(path).verify(public(keys))


def test_another_key_and_no_signature_are_told(ticket, keys, tmp_path):
    other = tmp_path / "other"
    shown = make_keys(other)
    with pytest.raises(TicketError, match=r"is not signed, by SHA256:.* or anybody"):
        ticket.verify(public(keys))
    ticket.sign(other)
    with pytest.raises(TicketError, match=f"is signed by {shown}, and not by SHA256:".replace("+", r"\+")):
        ticket.verify(public(keys))
    taken = ticket.signature
    ticket.sign(keys).verify(public(keys))
    ticket.signature = type(taken)(taken.key, taken.of, ticket.signature.value)  # somebody else's name on it
    with pytest.raises(TicketError, match="is not one by SHA256:"):
        ticket.verify(public(other))


def test_a_ticket_that_was_changed_since_is_not_saved(ticket, keys, tmp_path):
    ticket.sign(keys)
    ticket.origin["seed"] = 2
    with pytest.raises(TicketError, match="changed since it was signed: sign it again"):
        ticket.save(tmp_path / "t")
    with pytest.raises(TicketError, match="was changed since SHA256:"):
        ticket.verify(public(keys))
    ticket.sign(keys).save(tmp_path / "t")
    Ticket.load(tmp_path / "t").verify(public(keys))


def test_keys_are_for_their_owner_alone_and_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_keys(Path("k"))
    assert stat.S_IMODE(Path("k").stat().st_mode) == 0o600
    before = Path("k").read_bytes(), Path("k.pub").read_bytes()
    with pytest.raises(GenticketsError, match=r"k\.pub is there already"):
        make_keys(Path("k"))
    Path("k.pub").unlink()
    with pytest.raises(GenticketsError, match="k is there already"):
        make_keys(Path("k"))
    assert Path("k").read_bytes() == before[0]
    assert not Path("k.pub").exists()
    with pytest.raises(GenticketsError, match="cannot write the key"):
        make_keys(Path("absent/k"))
    with pytest.raises(GenticketsError, match=r"k\.pub"):
        Path("k").unlink(), Path("k.pub").symlink_to("elsewhere"), make_keys(Path("k"))
    assert not Path("elsewhere").exists()


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no OpenSSH here")
def test_the_keys_are_those_of_openssh(tmp_path, ticket):
    said = make_keys(tmp_path / "k")
    shown = subprocess.run(["ssh-keygen", "-l", "-f", tmp_path / "k.pub"], capture_output=True, text=True, check=True)
    assert said in shown.stdout
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "theirs"], check=True)
    ticket.sign(tmp_path / "theirs").verify(tmp_path / "theirs.pub")


def test_keys_of_pem_and_what_is_no_key(ticket, tmp_path):
    form, private = serialization, Ed25519PrivateKey.generate()
    pem = private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    locked = private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"x"))
    theirs = generate_private_key(SECP256R1())
    other = theirs.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    shown = private.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    for name, raw in {"pem": pem, "locked": locked, "other": other, "shown": shown, "none": b"hello"}.items():
        (tmp_path / name).write_bytes(raw)
    ticket.sign(tmp_path / "pem").verify(tmp_path / "shown")
    ticket.sign(private).verify(private.public_key())
    for name, message in {
        "locked": "locked by a passphrase",
        "other": "no private key of ed25519",
        "none": "no private key of ed25519",
        "shown": "is a public key",
        "absent": "cannot read the key",
    }.items():
        with pytest.raises(GenticketsError, match=message):
            ticket.sign(tmp_path / name)
    for name, message in {"pem": "is a private key", "none": "no public key", "absent": "cannot read the key"}.items():
        with pytest.raises(GenticketsError, match=message):
            ticket.verify(tmp_path / name)


def test_without_the_package_a_signature_is_shown_and_not_checked(ticket, keys, tmp_path, monkeypatch, program):
    ticket.sign(keys).save(tmp_path / "t")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    code, out, _ = program("inspect", tmp_path / "t")
    assert code == 0
    assert f"signature: by the key {ticket.signature.signer}, not checked" in out
    code, _, err = program("verify", tmp_path / "t", "--by", ticket.signature.signer)
    assert code == 2
    assert "pip install gentickets[sign]" in err


def test_the_commands(ticket, tmp_path, monkeypatch, program):
    monkeypatch.chdir(tmp_path)
    ticket.save("t")
    code, out, _ = program("keys", "me")
    assert code == 0
    assert "results: me, for you alone; me.pub" in out
    assert program("keys", "me")[0] == 2
    program("keys", "you")
    code, _, err = program("verify", "t", "--by", "me.pub")
    assert (code, err.count("\n")) == (2, 1)
    assert "t: it is not signed" in err
    assert program("sign", "t", "--key", "me", "--out", "s")[0] == 0
    assert Ticket.load("t").signature is None
    code, out, _ = program("verify", "s", "--by", "me.pub")
    assert code == 0
    assert "s: every bit is as SHA256:" in out
    code, _, err = program("verify", "s", "--by", "you.pub")
    assert (code, err.count("\n")) == (2, 1)
    assert "and not by" in err
    code, out, _ = program("inspect", "s")
    assert "which fits; that says nothing of who holds the key" in out
    raw = Path("s").read_bytes()
    Path("s").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    code, _, err = program("verify", "s", "--by", "me.pub")
    assert (code, err.count("\n")) == (2, 1)
    assert "damaged or was changed" in err
    program("sign", "t", "--key", "me")
    Ticket.load("t").verify("me.pub")


def test_no_file_of_a_level_is_changed(ticket, keys, tmp_path, program):
    level = tmp_path / "level-01"
    level.mkdir()
    ticket.save(level / "ticket.safetensors")
    (level / "SHA256SUMS").write_text("")
    code, _, err = program("sign", level, "--key", keys)
    assert code == 2
    assert "--out" in err
    assert Ticket.load(level / "ticket.safetensors").signature is None
    assert program("sign", level, "--key", keys, "--out", tmp_path / "s")[0] == 0
    assert program("verify", tmp_path / "s", "--by", public(keys))[0] == 0
