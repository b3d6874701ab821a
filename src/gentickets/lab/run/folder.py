"""A run on disk: which files there are, and that each is whole or absent.

    runs/NAME/
      recipe.yaml  origin.json         what was asked, resolved; versions, machine, data fingerprint
      seed-0/rewind.safetensors        the weights at the rewind step; rewind.json: what they cost
      seed-0/level-00/ … level-12/     the dense model, and the tickets
      seed-0/level-03-random_mask/     the controls of a level
      results.csv  report.html

A level's folder appears whole (`publishing`). Files that are replaced (recipe.yaml, origin.json, results.csv, the page)
are written under the folder's lock. No bit of it can change unnoticed: files of state and JSON carry their own digest,
and a level's folder has those of all its files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import platform
import re
import shutil
import stat
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentickets import __version__
from gentickets.catalogue import changed_code
from gentickets.errors import GenticketsError, RecipeError
from gentickets.files import read_file, replace_file
from gentickets.lab.recipe import Recipe
from gentickets.lab.recipe.begun import check_goes_on, check_unchanged
from gentickets.lab.recipe.file import kept_recipe
from gentickets.lab.recipe.plain_yaml import read_yaml, write_yaml
from gentickets.lab.replacing import RECORD, finish, read_settled
from gentickets.lab.results.reading import LevelResult, parse
from gentickets.lab.run.claims import FOLDER as CLAIMS
from gentickets.sealed import Damaged, sealed_json, tensor_pieces, unsealed_json, unsealed_tensors

EXECUTOR = ".executor"
LOCK = ".lock"

_PATIENCE = 5.0
"""Seconds of waiting for another command after which that is told."""

MOST_TEXT = 2**28
"""Bytes of JSON or YAML that are read: a hundred times what a run writes, whoever made its folder."""


def write_json(path: Path, value: Any) -> None:
    """Writes plain data, whole or not at all; keys and values with a digest."""
    replace_file(path, sealed_json(value))


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises `Damaged` where it is not there, or not as it was written."""
    try:
        return unsealed_json(read_file(path, MOST_TEXT))
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror})") from None
    except Damaged as error:
        raise Damaged(f"{path} is damaged ({error})") from None


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """A run's recipe.yaml: every key of the resolved recipe."""
    replace_file(folder / "recipe.yaml", write_yaml(recipe.dump()))


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Writes named tensors as safetensors with a digest, whole or not at all."""
    replace_file(path, tensor_pieces(state))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Reads what `save_weights` wrote. Raises `Damaged` where it is not there, or a bit is not as it was written."""
    try:
        return unsealed_tensors(read_file(path))[0]
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror})") from None
    except Damaged as error:
        raise Damaged(f"{path} is damaged ({error})") from None


@contextlib.contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk, or a folder that cannot be written, into one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise GenticketsError(
                f"no space left for {folder}: free some and run the same command again; what is complete is kept"
            ) from error
        unnamed = error.filename is None and error.strerror is not None  # of a file that was open, to be written
        if unnamed or error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise GenticketsError(f"cannot write to {folder}: {error.strerror}") from error
        raise


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Only one command at a time writes the files of a run folder that are replaced.

    A folder that was made for it, and in which nothing else came to be, is removed. Raises `GenticketsError` for the
    second command, unless it is to `wait`; and where the lock's file is not one of ours: a link is not followed, and
    nothing is emptied.
    """
    handle = _locked_file(folder, wait)
    try:
        yield
    finally:
        if [entry.name for entry in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            with contextlib.suppress(OSError):
                folder.rmdir()
        os.close(handle)


def _locked_file(folder: Path, wait: bool) -> int:
    path = folder / LOCK
    told = time.monotonic() + _PATIENCE
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _open_lock(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            if not wait:
                raise GenticketsError(
                    f"{folder} is being written by another command: wait for it, or take name=…"
                ) from None
            if time.monotonic() > told:
                warnings.warn(f"{folder} is being written by another command: waiting for it", stacklevel=2)
                told = math.inf
            time.sleep(0.1)
            continue
        except OSError as error:
            os.close(handle)
            raise GenticketsError(f"{path} cannot be locked ({error.strerror}): take another --runs") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)  # its file was removed meanwhile, by a command that left nothing behind


def _open_lock(path: Path) -> int:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise GenticketsError(f"{path} is no lock of ours, but a link or the like: remove it") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise GenticketsError(f"{path} is no lock of ours, but a pipe or a device: remove it")
    return handle


def settle(folder: Path) -> None:
    """Ends the judging anew in whose writing another command was stopped."""
    if (folder / RECORD).exists():
        with one_line_errors(folder), locked(folder, wait=True):
            finish(folder)


def opened(folder: Path, asked: Recipe) -> tuple[Recipe, dict[str, Any], list[str]] | None:
    """The recipe and origin of a run that is there already and that `asked` may go on with; None for a new run.

    And what lies elsewhere by now, in words: then it may where the images are the same.

    Raises `RecipeError` that says which keys differ, where the folder was made by another recipe or its recipe.yaml was
    changed since, and for a folder that holds what is no run's.
    """
    if not (folder / "recipe.yaml").exists():
        if (folder / "origin.json").exists():
            raise RecipeError(
                f"{folder} holds what `gentickets train` made, or a run that lacks its recipe.yaml: take name=… for "
                f"a new run, or --fresh"
            )
        if any(folder.glob("seed-*/level-*")):
            raise RecipeError(f"{folder} holds levels without recipe.yaml and origin.json: take name=… for a new run")
        if foreign := sorted(entry.name for entry in folder.iterdir() if not is_ours(entry)):
            raise RecipeError(
                f"{folder} holds what is no run's ({', '.join(foreign[:3])}{' …' if len(foreign) > 3 else ''}): "
                f"take another name=…"
            )
        return None
    if not (folder / "origin.json").exists():
        if any(folder.glob("seed-*/level-*")):
            raise RecipeError(
                f"{folder} holds levels, but not the origin.json that says whose they are: put it back, or --fresh"
            )
        return None
    recipe, origin = read_begun(folder)
    moved = check_goes_on(folder, asked, origin)
    check_same_code(folder, origin, asked)
    return recipe, origin, moved


def check_same_code(folder: Path, origin: Mapping[str, Any], recipe: Recipe) -> None:
    """Raises `RecipeError` where code that a recipe names is not what it was when the run began."""
    if changed := changed_code(origin.get("code") or {}, recipe.code()):
        raise RecipeError(
            f"{folder}: the code of {', '.join(changed)} has changed since the run began: put it back, or take name=… "
            f"for a new run, or --fresh"
        )


def check_same_versions(folder: Path, origin: Mapping[str, Any]) -> None:
    """Raises `RecipeError` where a run began with other versions: its numbers would be of neither."""
    began = origin["versions"] if isinstance(origin.get("versions"), dict) else {}
    for name, version in versions().items():
        if name != "python" and began.get(name, version) != version:
            raise RecipeError(
                f"{folder} began with {name} {began[name]}, and here is {version}: install that, or take name=… for a "
                f"new run"
            )


def versions() -> dict[str, str]:
    """What a run is made with, by name."""
    return {"gentickets": __version__, "torch": torch.__version__, "python": platform.python_version()}


def new_id() -> str:
    """What tells a run from whatever else was in its folder, or will be."""
    return uuid.uuid4().hex


def check_same_run(folder: Path, known: str | None) -> None:
    """Raises `RecipeError` where a run was begun anew since its `id` was known, or is judged by other samples."""
    if read_origin(folder).get("id") != known:
        raise RecipeError(f"{folder} was begun anew, or judged anew, by another command: start this one again")


def ground_of(origin: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs of equal recipes must share for equal bits, beside threads and processor: key of origin → value."""
    data, versions = origin.get("data") or {}, origin.get("versions") or {}
    return {
        "data.fingerprint": data.get("fingerprint"),
        "data.test_fingerprint": data.get("test_fingerprint"),
        "versions.torch": versions.get("torch"),
        "code": origin.get("code") or {},
    }


def seeds_in(folder: Path) -> list[int]:
    """The seeds that a run's folder has a folder for, by number."""
    named = (re.fullmatch(r"seed-(\d{1,18})", entry.name) for entry in folder.iterdir())
    return sorted(int(match[1]) for match in named if match is not None)


_OURS = (
    "recipe.yaml",
    "origin.json",
    "results.csv",
    "timings.csv",
    "report.html",
    "figures",
    LOCK,
    CLAIMS,
    EXECUTOR,
    RECORD,
)


def is_ours(entry: Path) -> bool:
    """Whether something in a run's folder is what a run makes, by its name."""
    return entry.name in _OURS or re.fullmatch(r"seed-\d+|\..*\.(partial|copy)", entry.name) is not None


def remove_run(folder: Path) -> None:
    """Removes what a run makes from its folder, but for claims, and nothing else; a link is removed and not followed.

    Raises `RecipeError` where the folder is something else.
    """
    entries = [entry for entry in folder.iterdir() if entry.name not in (LOCK, CLAIMS)]
    if entries and not (folder / "origin.json").exists() and not (folder / "recipe.yaml").exists():
        raise RecipeError(f"{folder} is no run, and --fresh would remove what is in it: take another name=…")
    for entry in filter(is_ours, entries):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def read_begun(folder: Path, allow_code: bool = False) -> tuple[Recipe, dict[str, Any]]:
    """The resolved recipe of a run and its origin; code that it names may be built with `allow_code` alone.

    Raises `RecipeError` where the folder is no run, where its recipe.yaml was changed since the run began, and while it
    is judged anew.
    """
    return read_settled(folder, lambda: _begun(folder, allow_code))


def _begun(folder: Path, allow_code: bool) -> tuple[Recipe, dict[str, Any]]:
    # Read in this order: of a run that is begun anew in between, the recipe is never taken for the one before.
    origin, path = read_run_origin(folder), folder / "recipe.yaml"
    try:
        raw = read_yaml(read_file(path, MOST_TEXT), str(path))
    except OSError:
        raise RecipeError(f"{folder} is no run: it has no readable recipe.yaml") from None
    recipe = kept_recipe(raw, str(path), allow_code)
    check_unchanged(path, raw, origin)
    return recipe, origin


def read_run_recipe(folder: Path, allow_code: bool = False) -> Recipe:
    """The recipe alone, as `read_begun` reads it."""
    return read_begun(folder, allow_code)[0]


def read_origin(folder: Path) -> dict[str, Any]:
    """What stands in a folder's origin.json. Raises `RecipeError` where it is broken."""
    try:
        origin = read_json(folder / "origin.json")
    except Damaged as error:
        raise RecipeError(f"{folder} is no run: it has no readable origin.json ({error})") from None
    if not isinstance(origin, dict):
        raise RecipeError(f"{folder} is no run: it has no readable origin.json, which holds no keys and values")
    return origin


def read_run_origin(folder: Path) -> dict[str, Any]:
    """A run's origin: what was asked, by how many threads, on which data, and what was given up for a time.

    Raises `RecipeError` where one of these is missing or of another kind.
    """
    origin = read_origin(folder)
    data = origin.get("data")
    sound = {
        "asked": isinstance(origin.get("asked"), dict),
        "threads": type(origin.get("threads")) is int and origin["threads"] > 0,
        "gave_up": isinstance(origin.get("gave_up"), list),
        "data": isinstance(data, dict) and isinstance(data.get("fingerprint"), str),
    }
    if broken := [key for key, holds in sound.items() if not holds]:
        raise RecipeError(
            f"{folder / 'origin.json'} lacks {', '.join(broken)}, or has something else there: put it back, "
            f"or take name=… or find --fresh"
        )
    return origin


def read_metrics(place: Path) -> dict[str, Any]:
    """A complete level's metrics.json. Raises `GenticketsError` where it is broken."""
    try:
        parse(place / "metrics.json", LevelResult)
    except RecipeError as error:
        raise GenticketsError(f"{error}: remove {place} and run the command again") from None
    return dict(read_json(place / "metrics.json"))
