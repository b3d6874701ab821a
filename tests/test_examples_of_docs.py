"""Every command that help, README and docs show is run as it stands: those that would train for long are planned, or
cut short by overrides behind them."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gentickets.cli import app, main
from gentickets.lab import report as pages
from gentickets.lab.recipe import read_recipe
from gentickets.lab.run import prepare as run_module
from gentickets.lab.run.plan import Plan
from test_docs_own import FILES as OWN

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DEMO = ("autoencoder", "vae", "gan")
SHORT = [
    "training.steps=12",
    "search.rewind_step=2",
    "evaluation.samples=128",
    "evaluation.classifiers=1",
    "data.limit=200",
]
"""Behind a command that trains."""
KEYS = ("keys", "my-key")
SIGN = ("sign", "runs/quickstart-gan/seed-0/level-02", "--key", "my-key", "--out", "signed.ticket")
APART = [
    ("find", "quickstart/autoencoder", *SHORT, "search.rounds=1", "controls.levels=[]", f"seeds=[{n}]", f"name=own-{n}")
    for n in range(3)
]
BEFORE = {"keys": [], "sign": [KEYS], "verify": [KEYS, SIGN], "merge": APART}
"""What a command of a person with a key, or with seeds that were made apart, rests on."""
QUICKER = {"transfer": SHORT, "evaluate": ["--samples", "130"]}


def commands_of_pages():
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            method = re.search(r"for method in ([\w-]+)", block)  # the first of a loop
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().startswith("gentickets "):
                    line = line.replace("$method", method[1] if method else "").replace("$rewind", "0")
                    yield page.name, shlex.split(line, comments=True)[1:]


def commands_of_help():
    for command in app.registered_commands:
        yield "help", shlex.split(command.epilog.removeprefix("Example: "))[1:]


COMMANDS = list({tuple(words): (page, words) for page, words in (*commands_of_pages(), *commands_of_help())}.values())
PLANNED = [(page, words) for page, words in COMMANDS if words[0] in ("find", "compare")]
RUN = [(page, words) for page, words in COMMANDS if words[0] not in ("find", "compare", "plan")]


def named(case):
    page, words = case
    return f"{page}: {' '.join(words)[:80]}"


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs the program here and gives what it prints; any exit code but 0 fails."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gentickets", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        assert not left.value.code, err
        return out

    return run


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def after_the_demo(tmp_path_factory):
    """A folder with the three runs of the demo, each cut short, and a person's own network."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "my_gan.py").write_text(OWN["my_gan.py"])
    return folder


def test_there_are_examples_of_every_command():
    assert {words[0] for _, words in COMMANDS} >= {command.name or command.callback.__name__ for command in
                                                   app.registered_commands}  # fmt: skip
    assert len(PLANNED) >= 16


@pytest.fixture
def measured(monkeypatch):
    """Nothing is measured where something is planned."""
    quick = SimpleNamespace(features=None)
    monkeypatch.setattr(run_module, "make_judge", lambda *_: quick)
    monkeypatch.setattr(run_module, "threads_of", lambda *_: 1)
    monkeypatch.setattr(run_module, "measure", lambda *_: Plan(1e-4, 1e-3, 1, 1, 1.0, 1, 1))


@pytest.mark.parametrize("case", PLANNED, ids=named)
def test_what_would_train_can_be_planned_after_the_demo(case, program, tmp_path, cache, monkeypatch, measured):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENTICKETS_CACHE", str(cache))
    for name in DEMO:  # as the demo leaves them: its runs are there, made by the recipes as they stand
        recipe = read_recipe(f"quickstart/{name}")
        run_module.prepared(recipe, tmp_path / "runs" / recipe.name)
    _, words = case
    said = [*(word for word in words if not word.startswith("data.source=path/to/")), "data.source=digits"]
    assert re.search(r"about .*(memory|in all)|going on with", program(*said, "--plan"))


@pytest.fixture
def demo(after_the_demo, program, cache, monkeypatch):
    monkeypatch.chdir(after_the_demo)
    monkeypatch.setenv("GENTICKETS_CACHE", str(cache))
    if not (after_the_demo / "runs").exists():
        with monkeypatch.context() as patched:  # a page a run is most of the time that this takes
            patched.setattr(pages, "write_report", lambda runs: runs[0] / "report.html")
            for name, rounds in zip(DEMO, (7, 3, 3), strict=True):
                gently = ["search.fraction=0.2", "seeds=[0]", "controls.levels=[]", f"search.rounds={rounds}"]
                program("find", f"quickstart/{name}", *SHORT, *gently)
    return after_the_demo


@pytest.mark.parametrize("case", [case for case in COMMANDS if case[1][0] == "plan"], ids=named)
def test_what_more_workers_are_worth_is_told(case, program, tmp_path, monkeypatch, measured):
    monkeypatch.chdir(tmp_path)
    said = program(*case[1], "data.source=digits")
    assert "one after the other" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", RUN, ids=named)
def test_what_works_on_the_demo_does(case, program, demo):
    page, words = case
    if "*" in " ".join(words):  # as a shell would
        words = [found for word in words for found in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    if words[0] in BEFORE:  # no key is overwritten
        for key in demo.glob("my-key*"):
            key.unlink()
    if words[0] == "merge":
        shutil.rmtree(demo / "runs" / "own", ignore_errors=True)
    if words[:2] == ["inspect", "signed.ticket"] and not (demo / "signed.ticket").exists():
        program(*KEYS)
        program(*SIGN)
    for before in BEFORE.get(words[0], ()):
        program(*before)
    quicker = [*SHORT, "--name", f"one-of-{page}"] if words[0] == "train" else QUICKER.get(words[0], [])
    assert program(*words, *quicker)
