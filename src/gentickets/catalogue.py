"""What can be named, and where it is: by a name of this table, as `file.py:name`, or as `package.module:name`.

A thing that is named is a function or a class. What it is told are its arguments: those that are given by whoever
builds it (`Named.build(objective=…)`), and the others, which are its options. The table loads nothing when it is read.
"""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from gentickets.errors import GenticketsError, RecipeError

_MODELS = {
    "linear-autoencoder": "gentickets.models.autoencoder:linear_autoencoder",
    "conv-autoencoder": "gentickets.models.autoencoder:conv_autoencoder",
    "conv-vae": "gentickets.models.vae:conv_vae",
    "dcgan": "gentickets.models.dcgan:dcgan",
    "unet": "gentickets.models.unet:unet",
    "kl-autoencoder": "gentickets.models.kl_autoencoder:kl_autoencoder",
    "paper-linear-ae": "gentickets.models.paper:paper_linear_ae",
    "paper-conv-ae": "gentickets.models.paper:paper_conv_ae",
    "paper-vae": "gentickets.models.paper:paper_vae",
    "paper-resnet-vae": "gentickets.models.paper:paper_resnet_vae",
    "paper-dcgan": "gentickets.models.paper:paper_dcgan",
    "paper-sngan": "gentickets.models.paper:paper_sngan",
    "paper-resnet-dcgan": "gentickets.models.paper:paper_resnet_dcgan",
    "paper-wgan": "gentickets.models.paper:paper_wgan",
}
_OBJECTIVES = {
    "autoencoding": "gentickets.objectives.autoencoding:Autoencoding",
    "kl-autoencoding": "gentickets.objectives.kl_autoencoding:KLAutoencoding",
    "elbo": "gentickets.objectives.elbo:ELBO",
    "adversarial": "gentickets.objectives.adversarial:Adversarial",
    "denoising": "gentickets.objectives.denoising:Denoising",
}
_METHODS = {
    "imp": "gentickets.search.imp:Imp",
    "one-shot": "gentickets.search.one_shot:OneShot",
    "at-init": "gentickets.search.at_init:AtInit",
    "early-bird": "gentickets.search.early_level:EarlyBirds",
    "smaller": "gentickets.search.smaller:Smaller",
    "born-small": "gentickets.search.smaller:BornSmall",
    "few-images": "gentickets.search.few_images:FewImages",
    "rigl": "gentickets.search.rigl:RigL",
    "set": "gentickets.search.rigl:SET",
    "gradual": "gentickets.search.gradual:GradualPruning",
    "block-rates": "gentickets.search.block_rates:BlockRates",
    "transferred": "gentickets.search.transferred:Transferred",
    "by-time": "gentickets.search.by_time:TicketsByTime",
}
_CRITERIA = {
    "magnitude": "gentickets.pruning.criteria:by_magnitude",
    "random": "gentickets.pruning.criteria:by_chance",
    "snip": "gentickets.pruning.criteria:by_snip",
    "grasp": "gentickets.pruning.criteria:by_grasp",
    "synflow": "gentickets.pruning.criteria:BySynflow",
    "lamp": "gentickets.pruning.lamp:lamp",
}

_AROUNDS = {
    "distilled": "gentickets.objectives.distilled:Distilled",
    "gain-penalty": "gentickets.objectives.gain_penalty:GainPenalty",
}

CATALOGUE: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "model": _MODELS,
        "objective": _OBJECTIVES,
        "method": _METHODS,
        "criterion": _CRITERIA,
        "around": _AROUNDS,
        "metric": {},
        "source": {},
    }
)
"""Kind → name → where it is. A new thing is one file, and one line here. Metrics and sources are named beside those
that judging and data know."""

_OURS = Path(__file__).resolve().parent

_CODE = re.compile(r"(?P<file>.+\.py):(?P<inside>[A-Za-z_]\w*)|(?P<module>[A-Za-z_][\w.]*):(?P<within>[A-Za-z_]\w*)")


def is_code(name: object) -> bool:
    """Whether a name says where code lies, which runs when it is looked up."""
    return isinstance(name, str) and _CODE.fullmatch(name) is not None


@dataclass(frozen=True)
class Named:
    """Something that is named, with the options that were said."""

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: str, said: str | Mapping[str, Any] | Named) -> Named:
        """From how it is written: a name, or `{name: …}` with options."""
        if isinstance(said, Named):
            return said
        if isinstance(said, str):
            return cls(kind, said)
        options = dict(said)
        return cls(kind, str(options.pop("name")), options)

    def load(self) -> Callable[..., Any]:
        """The function or class. Raises `RecipeError` where there is none, or its file cannot be run."""
        return load(self.kind, self.name)

    def build(self, **given: Any) -> Any:
        """A class's instance; a function, with its options filled in.

        Of `given` it gets what it has an argument for, and an option that was said goes before. Raises `RecipeError`
        where it needs what is neither, and where it refuses its options.
        """
        target = self.load()
        takes = inspect.signature(target).parameters
        told = {**taken(target, **given), **self.options}
        if not inspect.isclass(target):
            return _filled_in(target, told)
        missing = [key for key, one in takes.items() if one.default is one.empty and key not in told and _is_one(one)]
        if missing:
            raise RecipeError(f"{self.kind}.{missing[0]} is missing: {self.name} needs it, and nothing else tells it")
        with running(self.name):
            try:
                return target(**told)
            except (ValueError, TypeError) as error:
                whole = inspect.isabstract(target)
                where = f"{self.kind}={self.name}: " if whole else f"{self.kind}."
                raise RecipeError(f"{where}{error}") from None


def taken(function: Callable[..., Any], **given: Any) -> dict[str, Any]:
    """Those of `given` that a function or class has an argument for."""
    takes = inspect.signature(function).parameters
    return {key: value for key, value in given.items() if key in takes}


def _filled_in(function: Callable[..., Any], told: Mapping[str, Any]) -> Callable[..., Any]:
    """A function with some arguments said, that still tells of itself what it told before."""
    filled = functools.update_wrapper(functools.partial(function, **told), function)
    del filled.__wrapped__  # its signature is what is left to be given
    return filled


def _is_one(parameter: inspect.Parameter) -> bool:
    """Whether it is one argument, rather than all that are left."""
    return parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_known(kind: str, name: str) -> None:
    """Raises `RecipeError` for what is neither in the table nor says where code lies."""
    known = CATALOGUE[kind]
    if name not in known and not is_code(name):
        near = difflib.get_close_matches(name, known, n=1)
        mend = f" (did you mean {near[0]}?)" if near else ""
        own = f"say which function or class in it, as {name}:name" if name.endswith(".py") else "as my.py:name"
        raise RecipeError(f"{name!r} is none of {', '.join(known)}{mend}, nor code of your own: {own}")


def load(kind: str, name: str) -> Callable[..., Any]:
    """What a name stands for. Code that it names is run. Raises `RecipeError`."""
    check_known(kind, name)
    where = CATALOGUE[kind].get(name)
    if where is not None:
        module, _, attribute = where.partition(":")
        return getattr(importlib.import_module(module), attribute)
    found = _CODE.fullmatch(name)
    assert found is not None
    attribute = found["inside"] or found["within"]
    module_ = _run_file(Path(found["file"]), name) if found["file"] else _imported(found["module"], name)
    target = getattr(module_, attribute, None)
    if not callable(target):
        has = _own_names(module_)
        near = difflib.get_close_matches(attribute, has, n=1)
        mend = f" (did you mean {near[0]}?)" if near else ""
        what = "is no function or class" if hasattr(module_, attribute) else "is not there"
        shown = [*has[:10], *(["…"] if len(has) > 10 else [])]
        raise RecipeError(
            f"{name}: {attribute!r} {what}; {found['file'] or found['module']} has {', '.join(shown)}{mend}"
        )
    return target


def digests(names: Iterable[str]) -> dict[str, str]:
    """Name → SHA-256 of the file that its code is in, for those that name code; and file → SHA-256 of what these files
    import, by import statements, of what lies beside them or below. Raises `RecipeError`."""
    found = {}
    for name in sorted({name for name in names if is_code(name)}):
        match = _CODE.fullmatch(name)
        assert match is not None
        source = match["file"] or getattr(_imported(match["module"], name), "__file__", None)
        found[name] = _digest(Path(source), name) if source else "none"
        if source and Path(source).suffix == ".py":
            module = tuple(match["module"].split(".")) if match["module"] else ()
            beside = _imported_files(Path(source).resolve(), module)
            called = Path(source).parent if match["file"] else Path()
            found |= {(called / file).as_posix(): _digest(path, name) for file, path in beside.items()}
    return dict(sorted(found.items()))


def changed_code(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What of `digests` is another now. What a file imports was not told by older versions: that is as it was."""
    return sorted(name for name in now if (is_code(name) or name in before) and before.get(name) != now[name])


def _digest(path: Path, name: str) -> str:
    return hashlib.sha256(_read(path, name)).hexdigest()


def _imported_files(source: Path, module: tuple[str, ...]) -> dict[Path, Path]:
    """What a file imports by statement of what is in its folder or below, and what these files do: place there → file.

    `module`: the parts of the name by which the file is itself imported, if it is; nothing where it is installed.
    """
    package = module if source.name == "__init__.py" else module[:-1]
    root = source.parents[len(package)]
    if {"site-packages", "dist-packages"} & {*root.parts} or root == _OURS.parent:
        return {}
    found, waiting = {source: Path()}, [source]
    named = [module]
    while waiting:
        for parts in (*named, *_imports(waiting.pop(), root)):
            for depth in range(1, len(parts) + 1):
                place = root.joinpath(*parts[:depth])
                for file in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
                    if file not in found and file.is_file() and not file.is_relative_to(_OURS):
                        found[file] = file.relative_to(root)
                        waiting.append(file)
        named.clear()
    return {place: file for file, place in found.items() if file != source}


def _imports(path: Path, root: Path) -> Iterator[tuple[str, ...]]:
    """The modules that a file's import statements may mean, as the parts of their names; none of a broken file."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # running it says so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.parent.relative_to(root).parts
            within = package[: len(package) - node.level + 1] if node.level else ()
            module = (*within, *(node.module.split(".") if node.module else ()))
            yield from ((*module, *(() if alias.name == "*" else (alias.name,))) for alias in node.names)


_FAULTS = (Exception, SystemExit)
"""What code of one's own may raise that is a fault of it: a model is no program, that may end this one."""


@contextmanager
def running(name: str) -> Iterator[None]:
    """Whatever code that `name` says raises, in one line, with the line of its file. Raises `RecipeError`."""
    try:
        yield
    except GenticketsError:
        raise
    except _FAULTS as error:
        if not is_code(name):
            raise
        raise RecipeError(f"{name} failed ({_where(error, _file_of(name))})") from error


@contextmanager
def own_faults() -> Iterator[None]:
    """Whatever arises in code of one's own, in one line, as a `RecipeError`; other errors go through."""
    try:
        yield
    except GenticketsError:
        raise
    except _FAULTS as error:
        if (said := own_fault(error)) is None:
            raise
        raise RecipeError(said) from error


def own_fault(error: BaseException) -> str | None:
    """An error that arose in code of one's own, or in what that called: its file and line, in words; else None."""
    own = {path for path, _ in _ran} | _own_modules
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename) in own and isinstance(error, _FAULTS):
            return f"{Path(frame.filename).name}, {_where(error, Path(frame.filename))}"
    return None


def _file_of(name: str) -> Path | None:
    match = _CODE.fullmatch(name)
    assert match is not None
    if match["file"]:
        return Path(match["file"]).resolve()
    source = getattr(sys.modules.get(match["module"]), "__file__", None)
    return Path(source) if source else None


def _own_names(module: ModuleType) -> list[str]:
    """The public functions and classes that a module defines itself."""
    return [
        key
        for key, value in vars(module).items()
        if callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ] or ["nothing of its own"]


def _imported(module: str, name: str) -> ModuleType:
    try:
        found = importlib.import_module(module)
        _own_modules.update(Path(file) for file in [getattr(found, "__file__", None)] if file)
        return found
    except ModuleNotFoundError as error:
        raise RecipeError(f"{name}: there is no module {error.name!r}; a file is named as my.py:name") from None
    except _FAULTS as error:
        raise RecipeError(f"{name}: importing {module} failed ({_where(error, None)})") from None


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{name}: cannot read {path} ({error.strerror}), as seen from the current folder") from None


_own_modules: set[Path] = set()
_ran: dict[tuple[Path, bytes], ModuleType] = {}


def _run_file(path: Path, name: str) -> ModuleType:
    """The module that a file is; it is run once for as long as it does not change."""
    text = _read(path, name)
    path = path.resolve()
    key = path, hashlib.sha256(text).digest()
    if key in _ran:
        return _ran[key]
    called = f"{path.stem}_{key[1].hex()[:12]}"
    spec = importlib.util.spec_from_file_location(called, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[called] = module  # dataclasses look their module up
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # it may import what lies beside it, as a script may
    try:
        spec.loader.exec_module(module)
    except _FAULTS as error:
        del sys.modules[called]
        raise RecipeError(f"{name}: running {path.name} failed ({_where(error, path)})") from None
    _ran[key] = module
    return module


def _where(error: BaseException, path: Path | None) -> str:
    """An error in a line, with the line of the user's file at which it arose."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    at = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
    said = " ".join(str(error).split())[:200]
    return f"{'' if at is None else f'line {at}: '}{type(error).__name__}: {said}"
