"""Run folders of which some files are damaged, hostile or of another kind: `python -m tests.fuzz.runs`."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from gentickets.lab.listings import LISTINGS, run_table
from gentickets.lab.recipe import Recipe, make_recipe
from gentickets.lab.report import verdict_table, write_report
from gentickets.lab.results.reading import read_run
from gentickets.lab.results.tables import write_csv
from gentickets.lab.run.again import evaluate_again
from gentickets.lab.run.prepare import prepared
from gentickets.lab.run.work import run_all
from gentickets.lab.shipping import of_level
from gentickets.terminal import Terminal
from tests.fuzz.hunt import Attempt, main
from tests.fuzz.mutations import any_of, damaged, hostile, mutated
from tests.fuzz.tickets import hostile_ticket

TINY: dict[str, Any] = {
    "model": {"name": "linear-autoencoder", "width": 6, "depth": 1, "latent": 2},
    "data": {"source": "digits", "size": 8, "limit": 200},
    "objective": {"name": "autoencoding"},
    "training": {"steps": 12, "batch_size": 8, "lr": 0.003},
    "search": {"rounds": 2, "fraction": 0.4, "rewind_step": 2},
    "controls": {"levels": [1]},
    "evaluation": {"features": "none"},
    "seeds": [0],
}
RECIPES = (
    {**TINY, "name": "watched", "evaluation": {"features": "none", "every": 4}, "training": {**TINY["training"],
     "ema": 0.9}},
    {**TINY, "name": "bird", "model": {"name": "conv-vae", "width": 2, "latent": 2}, "objective": {"name": "elbo"},
     "search": {"method": "early-bird", "granularity": "channel", "rounds": 1, "fraction": 0.3, "window": 2,
     "interval": 1}},
)  # fmt: skip


def bases(place: Path) -> list[tuple[Recipe, Path]]:
    """Whole runs, and their recipes."""
    found = []
    for raw in RECIPES:
        recipe = make_recipe(raw)
        run_all([prepared(recipe, place / recipe.name)], lambda event: None)
        found.append((recipe, place / recipe.name))
    return found


def change(rng: random.Random, folder: Path, file: Path) -> None:
    """Makes something else of one file of a run, by what it holds."""
    raw = file.read_bytes()
    kind = rng.random()
    if kind < 0.12:
        _replaced(rng, folder, file)
    elif kind < 0.3:
        file.write_bytes(damaged(rng, raw))
    elif file.name == "curve.jsonl":
        lines = raw.splitlines()
        lines[rng.randrange(len(lines))] = any_of(
            rng, b"[1]", b"{", b"\xff", _json(hostile(rng)), _json({"step": hostile(rng)})
        )
        file.write_bytes(b"\n".join(lines))
    elif file.suffix == ".json":
        file.write_bytes(_json(mutated(rng, json.loads(raw))))
    elif file.suffix == ".yaml":
        file.write_bytes(_yaml(mutated(rng, yaml.safe_load(raw))))
    elif file.name == "ticket.safetensors":
        file.write_bytes(hostile_ticket(rng, [raw]))
    elif file.suffix == ".png":
        Image.new(any_of(rng, "1", "L", "RGBA", "P"), any_of(rng, (1, 1), (4000, 5000), (1, 3000))).save(file)
    else:
        file.write_bytes(damaged(rng, raw))


def _replaced(rng: random.Random, folder: Path, file: Path) -> None:
    """Nothing, a folder, a link, or a pipe in the place of a file; or its folder under another name."""
    kind = rng.randrange(7)
    if kind == 6 and file.parent != folder:
        name = any_of(rng, "level-99999999", "level-05", "level-01-random_mask", "level-", "x", "level-1" + "0" * 30)
        if not (file.parent.parent / name).exists():
            file.parent.rename(file.parent.parent / name)
        return
    file.unlink()
    if kind == 0:
        file.mkdir()
    elif kind == 1:
        file.symlink_to("/etc/hostname")
    elif kind == 2:
        file.symlink_to("nowhere")
    elif kind == 3:
        os.mkfifo(file)
    elif kind == 4:
        file.symlink_to("/dev/zero")


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except (RecursionError, ValueError):
        return b"[" * 5000


def _yaml(value: Any) -> bytes:
    try:
        return yaml.safe_dump(value, sort_keys=False).encode("utf-8", "surrogatepass")
    except (RecursionError, yaml.YAMLError, ValueError):
        return b"- [" * 300


def read(recipe: Recipe, folder: Path) -> None:
    run = read_run(folder)
    write_csv(run)
    console = Terminal(file=io.StringIO(), width=80)
    for table in (run_table(folder), verdict_table([run])):
        console.print(table)
    assert "\x1b" not in console.file.getvalue(), "an escape sequence reached the terminal"  # type: ignore[attr-defined]


def report(recipe: Recipe, folder: Path) -> None:
    page = write_report([folder]).read_text(encoding="utf-8")
    assert "<script>alert" not in page, "markup reached the page"


def listed(recipe: Recipe, folder: Path) -> None:
    Terminal(file=io.StringIO()).print(LISTINGS["runs"](folder.parent))


def opened(recipe: Recipe, folder: Path) -> None:
    prepared(recipe, folder, dry=True)


def shipped(recipe: Recipe, folder: Path) -> None:
    of_level(folder / "seed-0" / "level-01")


def evaluated(recipe: Recipe, folder: Path) -> None:
    evaluate_again(folder, {"samples": 32}, lambda event: None)


def resumed(recipe: Recipe, folder: Path) -> None:
    run_all([prepared(recipe, folder)], lambda event: None)


# Drawing takes a second, and so does training: they come seldom.
WAYS: tuple[tuple[int, Callable[[Recipe, Path], None]], ...] = (
    (60, read), (2, report), (15, listed), (15, opened), (15, shipped), (4, evaluated), (3, resumed),
)  # fmt: skip


def prepare() -> Attempt:
    place = Path(tempfile.mkdtemp())
    runs = bases(place)
    files = {folder: [file for file in sorted(folder.rglob("*")) if file.is_file()] for _, folder in runs}

    def attempt(rng: random.Random) -> str:
        recipe, folder = rng.choice(runs)
        (way,) = rng.choices([way for _, way in WAYS], [weight for weight, _ in WAYS])
        with _restored(folder):
            for file in rng.sample(files[folder], rng.choice((1, 1, 1, 2, 3))):  # each once: what is changed is no JSON
                if file.is_file() and not file.is_symlink():
                    change(rng, folder, file)
            way(recipe, folder)
        return f"taken: {way.__name__}"

    return attempt


@contextmanager
def _restored(folder: Path):  # type: ignore[no-untyped-def]
    whole = folder.with_name(f"whole-{folder.name}")
    if not whole.exists():
        shutil.copytree(folder, whole)
    try:
        yield
    finally:
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)


if __name__ == "__main__":
    main("run folders", prepare)
