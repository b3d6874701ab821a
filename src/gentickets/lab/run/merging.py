"""One run of several: of the same recipe, with other seeds, made in folders of their own."""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gentickets.catalogue import changed_code
from gentickets.errors import RecipeError
from gentickets.files import link_or_copy
from gentickets.lab.recipe import NAME, Recipe, parsed
from gentickets.lab.recipe.begun import PLACES
from gentickets.lab.recipe.file import differing_keys
from gentickets.lab.run import folder as disk
from gentickets.lab.run.claims import check_at_rest
from gentickets.lab.run.level import check_whole_level
from gentickets.lab.run.pieces import is_mark, pieces_in


@dataclass(frozen=True)
class _Source:
    folder: Path
    recipe: Recipe
    origin: dict[str, Any]
    seeds: tuple[int, ...]

    @property
    def says_its_images(self) -> bool:
        """Whether its origin has the fingerprints of both splits, as all but the oldest."""
        return "test_fingerprint" in self.origin["data"]


def merge(runs: Sequence[Path], into: Path) -> list[str]:
    """Makes a run folder of the complete levels of others; returns what is to be told of it, in words.

    Files are linked where they can be, and the runs stay as they are. The new one can be gone on with. Raises
    `RecipeError` where two runs differ in more than name, title, seeds and where their images lie, have a seed in
    common, were made of other data, by other code or versions, or where `into` is there already, or is no name of a
    run; and `DamagedLevel` where a level of theirs is not as it was written.
    """
    if len(runs) < 2:
        raise RecipeError("merge takes two run folders or more")
    if into.exists():
        raise RecipeError(f"{into} is there already, and nothing is overwritten: take another --out")
    if re.fullmatch(NAME, into.name) is None:
        raise RecipeError(f"--out {into}: name={into.name!r}: letters, digits, dots, - and _ are taken, 200 at most")
    sources = [_read(run) for run in runs]
    for other in sources[1:]:
        _check_alike(sources[0], other)
    _check_seeds(sources)
    seeds = [seed for source in sources for seed in source.seeds]
    recipe = parsed({**sources[0].recipe.dump(), "name": into.name, "seeds": seeds}, f"--out {into}")
    asked = {**sources[0].origin["asked"], "name": into.name, "seeds": seeds}
    merged = [source.folder.name for source in sources]
    origin = {**sources[0].origin, "id": disk.new_id(), "asked": asked, "merged": merged}
    beside = into.with_name(f".{into.name}.partial")
    with disk.one_line_errors(into):
        shutil.rmtree(beside, ignore_errors=True)
        try:
            for source in sources:
                for seed in source.seeds:
                    _take(source.folder / f"seed-{seed}", beside / f"seed-{seed}")
            disk.write_recipe(beside, recipe)
            disk.write_json(beside / "origin.json", origin)
            beside.rename(into)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return _words(sources, into)


def _read(folder: Path) -> _Source:
    recipe, origin = disk.read_begun(folder)
    check_at_rest(folder)
    pieces = pieces_in(folder)
    if not pieces:
        raise RecipeError(f"{folder}: no level is complete yet")
    for piece in pieces:
        check_whole_level(folder / piece.name)
    return _Source(folder, recipe, origin, tuple(sorted({piece.seed for piece in pieces})))


def _check_alike(first: _Source, other: _Source) -> None:
    differing = differing_keys(first.recipe.dump(), other.recipe.dump())
    # Where images lie is no matter: whether they are the same is seen below.
    own = ("name", "title", "seeds", *(PLACES if first.says_its_images and other.says_its_images else ()))
    if differing := [words for words in differing if words.partition(" ")[0] not in own]:
        raise RecipeError(f"{first.folder} and {other.folder} differ in {'; '.join(differing)} (first {first.folder})")
    grounds = [disk.ground_of(one.origin) for one in (first, other)]
    codes = [ground.pop("code") for ground in grounds]
    if changed_code(*codes) or changed_code(*reversed(codes)):
        raise RecipeError(f"{first.folder} and {other.folder} were made by different code of the same name")
    for name, value in grounds[0].items():
        if value != grounds[1][name]:
            part, _, key = name.partition(".")
            raise RecipeError(
                f"{first.folder} and {other.folder} are not of the same {part}: {key} {str(value)[:16]} and "
                f"{str(grounds[1][name])[:16]}"
            )


def _check_seeds(sources: Sequence[_Source]) -> None:
    owners: dict[int, Path] = {}
    for source in sources:
        for seed in source.seeds:
            if seed in owners:
                raise RecipeError(f"{owners[seed]} and {source.folder} both have seed {seed}: leave one of them out")
            owners[seed] = source.folder


def _take(source: Path, target: Path) -> None:
    """Links the complete levels of a seed, its rewind point, and the marks of controls that its levels cannot have.

    What is no file or folder of a run's own, such as a link in a stranger's, is left.
    """
    target.mkdir(parents=True)
    for entry in sorted(source.iterdir()):
        if entry.is_symlink() or (entry.name.startswith(".") and not is_mark(entry.name)):
            continue
        if entry.is_dir():
            (target / entry.name).mkdir()
            for file in entry.iterdir():
                if _is_plain(file):
                    link_or_copy(file, target / entry.name / file.name)
        elif _is_plain(entry):
            link_or_copy(entry, target / entry.name)


def _is_plain(file: Path) -> bool:
    return stat.S_ISREG(file.lstat().st_mode)


def _words(sources: Sequence[_Source], into: Path) -> list[str]:
    words = [f"{into}: seeds {', '.join(str(seed) for source in sources for seed in source.seeds)}"]
    threads = sorted({source.origin["threads"] for source in sources})
    if len(threads) > 1:
        words.append(
            f"made with {' and '.join(map(str, threads))} threads a training: equal recipes of theirs differ in last "
            f"bits; what is still to be made takes {sources[0].origin['threads']}"
        )
    machines = {(source.origin.get("machine") or {}).get("cpu") for source in sources}
    if len(machines) > 1:
        words.append(f"made on {' and '.join(sorted(str(one) for one in machines))}: their seconds do not compare")
    left = [source.folder.name for source in sources if any(source.folder.glob("seed-*/.*.partial"))]
    if left:
        words.append(f"levels in the making were left behind in {', '.join(left)}")
    return words
