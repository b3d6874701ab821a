"""What older recipes and run folders say, in the keys of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gentickets.catalogue import CATALOGUE
from gentickets.lab.recipe.owned import owner
from gentickets.options import TOLERANCES

SHORT = {
    "snip": "snip",
    "grasp": "grasp",
    "synflow": "synflow",
    "magnitude-at-init": "magnitude",
    "random-at-init": "random",
}
"""Methods that prune before training, by the one name that they had → the criterion of method at-init."""


def of_today(raw: Any, kept: bool = False) -> Any:
    """A recipe's plain data in the keys of today.

    `kept`: it stands in a run's folder, where every key had a value: those that its method, model or objective never
    read are left out. Before `search.rule` early birds went by the paper's, and before `evaluation.classifiers` there
    was one.
    """
    if not isinstance(raw, dict):
        return raw
    raw = dict(raw)
    if kept and isinstance(raw.get("evaluation"), dict):
        raw["evaluation"] = {"classifiers": 1, **raw["evaluation"]}
    if isinstance(raw.get("search"), str):
        raw["search"] = {"method": raw["search"]}
    if isinstance(raw.get("search"), dict):
        search = dict(raw["search"])
        if kept and search.get("method") == "early-bird" and "tolerance" in search:
            search.setdefault("rule", "hamming")
            if (search["rule"], search["tolerance"]) in list(TOLERANCES.items()):
                search["tolerance"] = None
        search = _short(search)
        raw["search"] = _owned("method", search.get("method", "imp"), search, "method") if kept else search
    for part in ("model", "objective"):
        if kept and isinstance(raw.get(part), dict):
            raw[part] = _owned(part, raw[part].get("name"), raw[part], "name")
    return raw


def _short(search: Mapping[str, Any]) -> dict[str, Any]:
    """`method: snip` is `method: at-init, criterion: snip`; the number of batches is the criterion's."""
    search = dict(search)
    criterion = SHORT.get(str(search.get("method")))
    if criterion is None:
        return search
    batches = search.pop("score_batches", None)
    options = {"score_batches": batches} if batches is not None and criterion in ("snip", "grasp") else {}
    return {**search, "method": "at-init", "criterion": {"name": criterion, **options}}


def _owned(kind: str, name: Any, part: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(name, str) or name not in CATALOGUE[kind]:  # which is refused, by whoever reads it
        return dict(part)
    keys = {key, *owner(kind, name).options}
    return {one: value for one, value in part.items() if one in keys}
