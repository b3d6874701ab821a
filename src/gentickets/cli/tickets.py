"""Commands on tickets: whose they are, and how two differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gentickets.cli.program import A_TICKET, app, out

AnyTicket = Annotated[Path, typer.Argument(help="A ticket file, or a level's folder.", show_default=False)]


@app.command(epilog="Example: gentickets keys my-key")
def keys(
    name: Annotated[Path, typer.Argument(help="The file of the private key; the public one is NAME.pub.")] = Path(
        "gentickets-key"
    ),
) -> None:
    """Make a pair of keys to sign tickets with: ed25519, in the files of OpenSSH. Nothing is overwritten."""
    from gentickets.masks.signing import make_keys

    out.print(f"{make_keys(name)}\nresults: {name}, for you alone; {name}.pub, to be given away")


@app.command(epilog=f"Example: gentickets sign {A_TICKET} --key my-key --out signed.ticket")
def sign(
    ticket: AnyTicket,
    key: Annotated[Path, typer.Option("--key", help="Your private key of ed25519: OpenSSH or PEM.")],
    output: Annotated[Path | None, typer.Option("--out", help="The file to write; default: in its place.")] = None,
) -> None:
    """Sign a ticket: whoever has your public key can see that every bit of it is as you signed it."""
    from gentickets.lab import tickets

    place, signed = tickets.sign(ticket, key, output)
    out.print(f"{tickets.signature_words(signed)}\nresults: {place}")


@app.command(epilog="Example: gentickets verify signed.ticket --by my-key.pub")
def verify(
    ticket: AnyTicket,
    by: Annotated[str, typer.Option("--by", help="Their public key: a file, or its fingerprint SHA256:….")],
) -> None:
    """Check that a ticket was signed with a key: 2 is the exit code where it was not, or was changed since."""
    from gentickets.lab import tickets

    found = tickets.verify(ticket, by)
    out.print(f"{ticket}: every bit is as {found.signature.signer if found.signature else by} signed it")


@app.command(epilog="Example: gentickets diff runs/quickstart-gan/seed-0/level-01 runs/quickstart-gan/seed-0/level-02")
def diff(one: AnyTicket, other: AnyTicket) -> None:
    """Compare two tickets: masks beside what chance would give, layer by layer, signs, weights, origins, rounds."""
    from gentickets.lab.tickets import difference_words

    for part in difference_words(one, other):
        out.print(part)
