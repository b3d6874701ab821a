"""What is shown: text as it is, on any terminal; help where help is asked for."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

import gentickets as gt
from gentickets.compiled import missing
from gentickets.terminal import Terminal, printable


def program(*arguments, **environment):
    """The program's (exit code, output, complaints)."""
    done = subprocess.run(
        [sys.executable, "-m", "gentickets", *map(str, arguments)],
        env={**os.environ, "COLUMNS": "100", **environment},
        capture_output=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


@given(st.text())
def test_no_control_character_reaches_a_terminal(text):
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in printable(text).replace("\n", ""))
    shown = io.StringIO()
    terminal = Terminal(file=shown, force_terminal=False)
    table = Table("name")
    table.add_row(text)
    for what in (text, table):
        terminal.print(what)
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in shown.getvalue().replace("\n", ""))


@pytest.mark.parametrize("text", ["[bold]x[/bold]", "[/red]", "runs/r[x]", ":smile:"])
def test_text_that_looks_like_markup_is_text(text):
    shown = io.StringIO()
    Terminal(file=shown, force_terminal=False).print(text)
    assert shown.getvalue() == f"{text}\n"


def test_a_strangers_ticket_says_what_it_says(tmp_path):
    name = "\x1b]0;pwned\x07\x1b[31mred.weight"
    masks = gt.Masks({name: torch.ones(2, dtype=torch.bool)})
    path = tmp_path / "[red]x[bold].ticket"
    gt.Ticket(masks, None, {"lineage": "nonsense", "title": "\x1b[2J"}).save(path)
    code, out, _ = program("inspect", path, PYTHONIOENCODING="ascii")
    assert code == 0
    assert b"\x1b" not in out
    assert b"\x07" not in out
    assert b"[red]x[bold]" in out
    assert b"x1b" in out


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"], ["help", "find"], ["find", "-h"]])
def test_help_is_help(arguments):
    code, out, err = program(*arguments)
    assert (code, err) == (0, b"")
    assert b"Usage: " in out
    assert (b"Example: gentickets find" in out) == ("find" in arguments)


def test_a_version_says_so_where_layers_will_stay_dense():
    code, out, _ = program("--version")
    reason = missing()
    said = "" if reason is None else f"; masked layers stay dense: {reason}"
    assert (code, out.decode()) == (0, f"gentickets {gt.__version__}{said}\n")
