"""Mistakes on the command line, and what strangers may hand it: one line that names the mend, and an exit code."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gentickets as gt
from gentickets.cli import main
from gentickets.lab.run.folder import one_line_errors
from gentickets.lab.run.outputs import check_output
from test_results import build_run

ROOT = Path(__file__).parent.parent
GAN = "name: g\nmodel: {name: dcgan}\nobjective: {name: adversarial}\n"


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """Runs the program here, in an empty folder: (exit code, output, complaints)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gentickets", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code or 0, *capsys.readouterr()

    return run


def refused(program, *arguments):
    """The one line with which the program refuses."""
    code, _, err = program(*arguments)
    lines = err.splitlines()
    assert (code, len(lines)) == (2, 1), err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("objective=3", r"objective=3: keys .* below it: objective: \{name: adversarial\}"),
        ("model=mine.py", r"model.name='mine\.py' .*say which function or class in it, as mine\.py:name"),
        ("search=", "search is empty: write keys and values below it, or leave search out"),
        ("seeds=1", r"seeds=1: a list is needed: seeds=\[1\]"),
        ("name=1e5", "name=100000.0: text is needed; put it in quotes"),
        ("name=true", "name=True: text is needed; put it in quotes"),
        ("training.steps=1e3", "training.steps=1000.0: a whole number is needed: 1000"),
        ("training.steps=16 search.rewind_step=50", "take both, such as training.steps=16 search.rewind_step=1"),
        ("model.name=mynet:Generator", "there is no module 'mynet'; a file is named as my.py:name"),
        ("training.stepz=3", r"unknown key training\.stepz; .*\(did you mean steps\?\); `gentickets list keys` shows"),
        ("name=" + "n" * 300, "letters, digits, dots, - and _ are taken, 200 at most"),
        ("name=../../esc", "no path"),
        ("title=" + "9" * 5000, "the value is no YAML: a number has more than 4300 digits"),
        ("seeds=" + "[" * 3000, "nested too deep"),
        ("objective={name: adversarial, loss: wasserstein}", r"needs clip= \(such as 0\.01\) or gradient_penalty="),
        ("training.steps=1 seeds=[] model.width=0", r"model\.width=0.*training\.steps=1.*seeds=\[\]"),
    ],
)
def test_a_mistake_in_an_override_says_the_mend(program, tmp_path, arguments, message):
    (tmp_path / "g.yaml").write_text(GAN)
    parts = [arguments] if arguments.startswith("objective={") else arguments.split()
    told = refused(program, "find", "g.yaml", "--plan", *parts)
    assert re.search(message, told), told
    assert len(told) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{}",
            "name is missing: .*; model is missing: model: {name: dcgan}; objective is missing: objective: {",
        ),
        ("model: {width: 3}\n", "name is missing.*model.name is missing, such as .*; objective is missing"),
        (GAN + "search:\n", "search is empty"),
        (GAN + "training: {steps: 1e3}\n", "training.steps=1000.0: a whole number is needed: 1000"),
        (GAN + "a: !!int x\n", "no YAML: invalid literal"),
        (GAN + "a: !!float x\n", "no YAML: could not convert"),
        (GAN + "a: !!timestamp x\n", "timestamp is not taken"),
        (GAN + f"a: {'9' * 5000}\n", "a number has more than 4300 digits"),
        (GAN + "a: " + "[" * 3000, "nested too deep"),
        (GAN + "#" * 10**6, "larger than 1,000,000 bytes"),
        ("\x00", "no YAML"),
    ],
)
def test_a_mistake_in_a_file_says_the_mend(program, tmp_path, text, message):
    (tmp_path / "g.yaml").write_text(text)
    told = refused(program, "find", "g.yaml", "--plan")
    assert re.search(message, told), told


def test_dates_and_odd_days_are_text(program, tmp_path):
    for text in ("2026-11-26", "2001-13-45"):
        (tmp_path / "g.yaml").write_text(GAN.replace("name: g", f"name: {text}"))
        assert "knows full" in refused(program, "find", "g.yaml", f"name={text}", f"title={text}", "--budget", "none")


def test_what_has_no_end_is_no_recipe(program):
    assert "larger than" in refused(program, "find", "/dev/zero")
    assert "Is a directory" in refused(program, "find", ".")


@pytest.mark.parametrize("name", ["../../../ESC", "/ESC", "a/b", "n" * 300, ".."])
def test_one_training_is_written_below_runs_and_nowhere_else(program, tmp_path, name):
    (tmp_path / "g.yaml").write_text(GAN)
    assert "no path" in refused(program, "train", "g.yaml", "--name", name)


@pytest.mark.parametrize("level", ["x", [], None, -1, True, 10**30, 1.5])
def test_a_ticket_of_no_level_is_refused_before_it_is_trained(program, tmp_path, make_autoencoder, level):
    (tmp_path / "g.yaml").write_text(GAN)
    model = make_autoencoder()
    gt.Ticket(gt.Masks.dense(model), model, {"level": level}).save("x.ticket")
    assert "a whole number from 0 is needed" in refused(program, "train", "g.yaml", "--ticket", "x.ticket")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["find", "g.yaml", "--time", ""], "--time '' is no duration"),
        (["find", "g.yaml", "--disk", ""], "--disk '' is no size"),
        (["find", "g.yaml", "--budget", ""], "--budget '': g.yaml knows full"),
        (["compare", "g.yaml", "--methods", ","], "--methods: none is named; take some of"),
        (["find", "g.yaml", "data.source=~nobody-of-this-name/x"], "'~nobody-of-this-name/x' does not exist"),
        (["find", "g.yaml", "data.source=no such #2"], "'no such #2' does not exist"),
        (["find", "g.yaml", "evaluation.inception_weights=x"], "would not be read: take evaluation.features=inception"),
        (["train", "g.yaml", "--seed", "-1"], "--seed"),
        (["transfer", "t.ticket", "g.yaml", "generator=generator", "--seed", "-1"], "--seed"),
        (["transfer", "t.ticket", "g.yaml", "generator=generator", "discriminator"], "'discriminator' is no from=to"),
        (["keys", ""], "a key needs the name of a file"),
        (["keys", "/"], "a key needs the name of a file"),
    ],
)
def test_what_is_empty_or_half_said_is_not_taken_for_unsaid(program, tmp_path, arguments, message):
    (tmp_path / "g.yaml").write_text(GAN)
    assert message in refused(program, *arguments)


@pytest.mark.parametrize(
    ("place", "own"),
    [
        ("seed-0/level-01/trained.safetensors", True),
        ("seed-0/level-01/new.pt2", True),
        ("seed-0/rewind.safetensors", True),
        ("figures/d.pt2", True),
        ("recipe.yaml", True),
        ("results.csv", True),
        ("mine.json", False),
        ("d.pt2", False),
        ("exports/d.pt2", False),
        ("../d.pt2", False),
    ],
)
def test_nothing_that_a_run_keeps_is_written_over(tmp_path, place, own):
    run = build_run(tmp_path / "one", seeds=(0,), levels=2)
    (tmp_path / "linked").symlink_to(run)
    for folder in (run, tmp_path / "linked"):
        if own:
            with pytest.raises(gt.GenticketsError, match="is among what a run keeps"):
                check_output(folder / place)
        else:
            check_output(folder / place)


def test_a_ticket_is_not_written_over_by_what_is_made_of_it(program, tmp_path, make_autoencoder):
    (tmp_path / "g.yaml").write_text(GAN)
    model = make_autoencoder()
    gt.Ticket(gt.Masks.dense(model), model).save("t.safetensors")
    before = (tmp_path / "t.safetensors").read_bytes()
    for command in (["shrink", "t.safetensors", "--recipe", "g.yaml"], ["transfer", "t.safetensors", "g.yaml", "a=b"]):
        assert "t.safetensors is what is read" in refused(program, *command, "--out", "./t.safetensors")
    assert (tmp_path / "t.safetensors").read_bytes() == before


def test_a_file_that_cannot_grow_is_not_told_to_be_what_is_printed(tmp_path):
    with pytest.raises(gt.GenticketsError, match=r"cannot write to .*: File too large"), one_line_errors(tmp_path):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def test_a_ticket_is_trained_whatever_the_search_of_the_recipe_rewinds_to(program, tmp_path, make_autoencoder):
    (tmp_path / "g.yaml").write_text(GAN + "search: {rewind_step: 50}\n")
    model = make_autoencoder()
    gt.Ticket(gt.Masks.dense(model), model, {"level": "x"}).save("x.ticket")
    few = ("g.yaml", "training.steps=20")
    assert "search.rewind_step=50 is not before" in refused(program, "find", *few)
    assert "it is of level 'x'" in refused(program, "train", *few, "--ticket", "x.ticket")


def test_a_page_is_a_file_of_html(program, tmp_path):
    run = build_run(tmp_path / "one", seeds=(0,), levels=2)
    (tmp_path / "folder.html").mkdir()
    for wrong in ("x.pdf", ".", "page", "folder.html"):
        assert "a file is needed, whose name ends in .html" in refused(program, "report", run, "--out", wrong)


def test_paths_and_names_with_brackets_are_text(program, tmp_path):
    run = build_run(tmp_path / "x[" / "y]" / "r[bold]", seeds=(0,), levels=2)
    recipe = run / "recipe.yaml"
    recipe.write_text(re.sub("^name: .*", 'name: "[/red]"', recipe.read_text(), flags=re.MULTILINE))
    code, out, _ = program("inspect", run)
    assert (code, "[/red]" in out) == (0, True)
    code, out, _ = program("list", "runs", "--runs", run.parent)
    assert (code, "y]/r[bold]" in out) == (0, True)


def test_transfer_says_the_budget_in_the_command_that_trains_what_it_made():
    from typer.testing import CliRunner

    from gentickets.cli import app

    for command in ("train", "transfer", "find", "compare"):
        assert "--budget" in CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
@pytest.mark.parametrize("arguments", [["--help"], ["list", "keys"], ["list", "data"]])
def test_a_full_disk_under_the_output_is_one_line(arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gentickets", *arguments],
            stdout=full, stderr=subprocess.PIPE, env=environment, text=True, timeout=60,
        )  # fmt: skip
    told = done.stderr.splitlines()
    assert (done.returncode, told) == (2, ["gentickets: what is printed cannot be written: No space left on device"])


def test_numbers_of_a_table_are_whole_on_a_narrow_terminal(program, tmp_path, monkeypatch):
    run = build_run(tmp_path / "one", seeds=(0,), levels=2)
    monkeypatch.setenv("COLUMNS", "20")
    code, out, _ = program("inspect", run)
    assert code == 0
    assert "0.012" in out
    assert "…" not in out


def test_a_file_gets_no_control_codes_and_no_bars(program, tmp_path):
    run = build_run(tmp_path / "one", seeds=(0,), levels=2)
    for arguments in (["inspect", run], ["list", "keys"], ["find", "--help"], ["find", "absent.yaml"]):
        _, out, err = program(*arguments)
        assert "\x1b" not in out + err


def test_a_page_of_all_runs_leaves_single_trainings_out_and_says_so(program, tmp_path):
    build_run(tmp_path / "runs" / "a", seeds=(0,), levels=2)
    (tmp_path / "runs" / "a-train").mkdir()
    (tmp_path / "runs" / "a-train" / "origin.json").write_text("{}")
    code, _, err = program("report", "runs/a", "runs/a-train", "--out", "page.html")
    assert (code, "left out" in err, "runs/a-train" in err) == (0, True, True)
    assert "no run" in refused(program, "report", "runs/a-train", "--out", "page.html")
