"""Who signed something: ed25519 keys in the files of OpenSSH or PEM, signatures, and the fingerprints of keys.

A signature says that whoever has the private half of a key signed exactly this, and nothing of who that is: the public
half, or its fingerprint, must have come from them by another way. Signing and checking need the package cryptography
(`pip install gentickets[sign]`); a fingerprint needs nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentickets.errors import GenticketsError, TicketError
from gentickets.files import read_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_OF_TICKETS = b"gentickets.ticket.signature/1\n"
"""What every signed message begins with: a signature for another purpose is none of a ticket."""
_OPENSSH = b"ssh-ed25519"
_MOST_KEY = 2**16
"""Bytes of a file that may be a key's."""


@dataclass(frozen=True)
class Signature:
    """A signature as it lies in a file: the public key of 32 bytes, what was signed, and the 64 bytes over it.

    `of`: the fingerprint of the ticket that was signed, hexadecimal.
    """

    key: bytes
    of: str
    value: bytes

    @property
    def signer(self) -> str:
        """The fingerprint of the public key, as `ssh-keygen -l` shows it: `SHA256:…`."""
        return fingerprint(self.key)

    def as_json(self) -> dict[str, str]:
        return {"key": _text(self.key), "of": self.of, "signature": _text(self.value)}

    @classmethod
    def of_json(cls, raw: Any) -> Signature:
        """Raises `TicketError` for what is no signature."""
        try:
            key, value = (base64.b64decode(raw[name], validate=True) for name in ("key", "signature"))
            sound = len(key) == 32 and len(value) == 64 and len(bytes.fromhex(raw["of"])) == 32
        except (TypeError, KeyError, ValueError, binascii.Error):
            sound = False
        if not sound or not isinstance(raw, Mapping) or set(raw) != {"key", "of", "signature"}:
            raise TicketError("its signature is none of ed25519")
        return cls(key, raw["of"], value)


def signed(of: str, key: str | os.PathLike[str] | Ed25519PrivateKey) -> Signature:
    """A signature over the fingerprint of a ticket. `key`: a private key, or the file that holds one.

    Raises `GenticketsError` where the key cannot be read, and where cryptography is not installed.
    """
    private = _private_key(Path(key)) if isinstance(key, str | os.PathLike) else key
    return Signature(_raw(private.public_key()), of, private.sign(_OF_TICKETS + of.encode()))


def check_signature(signature: Signature) -> None:
    """Raises `TicketError` where the signature is not one of its key over what it says that it is of."""
    _need_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(signature.key).verify(signature.value, _OF_TICKETS + signature.of.encode())
    except (InvalidSignature, ValueError):
        raise TicketError(
            f"its signature is not one by {signature.signer}: it was forged, or changed after it was signed"
        ) from None


def signer_of(by: str | os.PathLike[str] | Ed25519PublicKey) -> str:
    """The fingerprint of a public key: of a file (OpenSSH or PEM), of a key, or of one that is told as `SHA256:…`.

    Raises `GenticketsError` for what is none of these, a private key among them.
    """
    if isinstance(by, str) and by.startswith("SHA256:"):
        return by.rstrip("=")
    return fingerprint(_raw(_public_key(Path(by)) if isinstance(by, str | os.PathLike) else by))


def make_keys(path: Path) -> str:
    """Writes a new private key to `path`, readable by its owner alone, and its public one beside it as `….pub`.

    Both in the format of OpenSSH. Returns the fingerprint. Nothing is overwritten: raises `GenticketsError` where one
    of the files is there, and where they cannot be written.
    """
    _need_cryptography()
    if path.name in ("", ".."):
        raise GenticketsError(f"a key needs the name of a file, and {str(path)!r} is that of a folder: take my-key")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, public_path = Ed25519PrivateKey.generate(), path.with_name(path.name + ".pub")
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    if os.path.lexists(public_path):
        raise GenticketsError(f"{public_path} is there already, and no key is overwritten: take another name")
    _write_new(path, private, 0o600)
    _write_new(public_path, public + b"\n", 0o644)
    return fingerprint(_raw(key.public_key()))


def fingerprint(key: bytes) -> str:
    """Of a public key of 32 bytes, as OpenSSH has it."""
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in (_OPENSSH, key))
    return "SHA256:" + _text(hashlib.sha256(blob).digest()).rstrip("=")


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise GenticketsError(f"{path} is there already, and no key is overwritten: take another name") from None
    except OSError as error:
        raise GenticketsError(f"cannot write the key {path}: {error.strerror}") from None
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, mode)  # whatever the umask
        file.write(content)
        file.flush()
        os.fsync(handle)


def _private_key(path: Path) -> Ed25519PrivateKey:
    content = _key_file(path)
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if content.startswith(_OPENSSH) or b"PUBLIC KEY" in content:
        raise GenticketsError(f"{path} is a public key: tickets are signed with the private one, the file without .pub")
    load: Any = form.load_ssh_private_key if b"OPENSSH PRIVATE KEY" in content else form.load_pem_private_key
    try:
        key = load(content, password=None)
    except TypeError:
        raise GenticketsError(
            f"{path} is locked by a passphrase, which is not asked for here: sign with a key without one, as "
            "`gentickets keys NAME` makes it"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise GenticketsError(f"{path} is no private key of ed25519: `gentickets keys NAME` makes one")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    content = _key_file(path)
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if b"PRIVATE KEY" in content:
        raise GenticketsError(
            f"{path} is a private key: name the public one, such as {path}.pub, and give away no other"
        )
    load: Any = form.load_pem_public_key if b"PUBLIC KEY" in content else form.load_ssh_public_key
    try:
        key = load(content)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise GenticketsError(f"{path} is no public key of ed25519: a file of OpenSSH or PEM, or SHA256:…, is needed")
    return key


def _key_file(path: Path) -> bytes:
    try:
        return read_file(path, _MOST_KEY)
    except OSError as error:
        raise GenticketsError(f"cannot read the key {path}: {error.strerror or error}") from None


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes_raw()


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise GenticketsError("signatures need the package cryptography: pip install gentickets[sign]") from None


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
