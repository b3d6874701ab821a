"""Recipes, studies and overrides that say what one would not expect: `python -m tests.fuzz.recipes`."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from gentickets.lab.recipe import is_study, make_recipe, read_recipe
from gentickets.lab.study.study import read_study
from tests.fuzz.hunt import Attempt, main
from tests.fuzz.mutations import HOSTILE_TEXT, damaged, mutated

# Short, as reading YAML costs by the word. Together they have every part, and keys of all kinds.
BASES: tuple[dict[str, Any], ...] = (
    {"name": "x", "model": {"name": "linear-autoencoder", "width": 8}, "objective": {"name": "autoencoding"}},
    {"name": "x", "model": {"name": "dcgan"}, "objective": {"name": "adversarial", "n_critic": 2},
     "training": {"lr": 0.1}},
    {"name": "x", "model": {"name": "conv-vae", "latent": 4}, "objective": {"name": "elbo", "beta": 0.5},
     "training": {"steps": 40, "lr": {"encoder": 0.1, "decoder": 0.2}, "ema": 0.9}},
    {"name": "x", "model": {"name": "conv-vae"}, "objective": {"name": "elbo"}, "seeds": [0, 1],
     "search": {"method": "early-bird", "rounds": 2, "fraction": 0.5, "components": ["encoder"], "tolerance": 0.1}},
    {"name": "x", "model": {"name": "conv-vae"}, "objective": {"name": "elbo"}, "on_failure": "stop",
     "search": {"rounds": 3, "rewind_step": 5, "include": ["encoder.*"], "retrain": "rewind"},
     "controls": {"levels": [1, 2]}},
    {"name": "x", "title": "y", "model": {"name": "linear-autoencoder"}, "objective": {"name": "autoencoding"},
     "evaluation": {"samples": 64, "metrics": ["reconstruction_mse"], "every": 5}, "data": {"source": "digits",
     "size": 8}},
    {"name": "x", "model": {"name": "linear-autoencoder"}, "objective": {"name": "autoencoding"},
     "budgets": {"smoke": {"training.steps": 5, "search": {"rounds": 1}}}},
    {"name": "x", "model": {"name": "conv-vae"}, "objective": {"name": "elbo"}, "search": {"rounds": 2},
     "study": {"arms": {"imp": {}, "snip": {"search.method": "snip", "search.rewind_step": 0}}}},
    {"name": "x", "model": {"name": "conv-vae"}, "objective": {"name": "elbo"}, "search": {"rounds": 2},
     "study": {"methods": ["imp", "one-shot"], "published": {"of": "z", "rows": [{"of": "a", "value": 1.0}]}}},
)  # fmt: skip
KEYS = (
    "name", "title", "seeds", "on_failure", "model", "model.name", "model.width", "model.hidden", "data.source",
    "data.size",
    "objective.beta", "objective.loss", "training.steps", "training.lr", "training.batch_size", "training.threads",
    "training.precision", "search", "search.rounds", "search.fraction", "search.method", "search.rewind_step",
    "search.include", "controls.levels", "evaluation.samples", "evaluation.every", "study", "study.arms", "budgets",
    "x.y.z",
)  # fmt: skip
VALUES = (
    "1e3", "0100", "1:30", "yes", "on", "~", "", ".inf", "-.inf", ".nan", "1_000", "0x10", "0b1", "2001-13-45",
    "2001-12-14",
    "!!int x", "!!float x", "!!timestamp x", "!!binary x", "!!python/name:os.system", "!!set {a}", "&a [*a]", "*a",
    "[" * 400,
    "{" * 400, "9" * 5000, "[1,2", "{a: 1, a: 2}", "'", '"', "|", ">", "@x", "`", "%", "? x", "- 1", "a: b: c", "\t",
    "\x00",
    "1e400", "-1", "100000000000000000000", "[[[]]]", "{}", "[]", "null", "true", "\ufeff1", "é", "[1, 1]", "<<", "=",
)  # fmt: skip


def hostile_recipe(rng: random.Random) -> tuple[bytes, list[str], str | None]:
    """A file that is almost a recipe, overrides, and a budget."""
    base = rng.choice(BASES)
    raw = mutated(rng, base) if rng.random() < 0.6 else base
    text = _written(raw)
    if rng.random() < 0.25:
        text = damaged(rng, text)
    if rng.random() < 0.15:
        text += f"{rng.choice(KEYS)}: {rng.choice(VALUES)}\n".encode("utf-8", "surrogatepass")
    overrides = [_override(rng) for _ in range(rng.choice((0, 0, 0, 1, 1, 2)))]
    budget = rng.choice((None, None, None, "smoke", "full", rng.choice(HOSTILE_TEXT)))
    return text, overrides, budget


def _written(raw: Any) -> bytes:
    """Plain data as JSON, which YAML is too: the keys of the top in lines of their own."""
    try:
        if not isinstance(raw, dict):
            return json.dumps(raw).encode()
        lines = (f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in raw.items())
        return "\n".join([*lines, ""]).encode("utf-8", "surrogatepass")
    except (RecursionError, ValueError):
        return b"x: " + b"[" * 400


def _override(rng: random.Random) -> str:
    if rng.random() < 0.1:
        return rng.choice((*HOSTILE_TEXT, "=", "a", ".=1", "a..b=1"))
    return f"{rng.choice(KEYS)}={rng.choice((*VALUES, *HOSTILE_TEXT, '3', '0.5'))}"


def prepare() -> Attempt:
    file = Path(tempfile.mkdtemp()) / "recipe.yaml"

    def attempt(rng: random.Random) -> str | None:
        text, overrides, budget = hostile_recipe(rng)
        file.write_bytes(text)
        # Told from the text, as reading YAML costs; now and then as the program does it.
        if b"study" in text if rng.random() < 0.9 else is_study(file):
            read_study(file, overrides, budget=budget)
            return "taken as a study"
        recipe = read_recipe(file, overrides, budget)
        assert make_recipe(recipe.dump()) == recipe, "a recipe is not what it says of itself"
        return None

    return attempt


if __name__ == "__main__":
    main("recipes", prepare)
