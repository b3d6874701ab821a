"""Nothing in docs and benchmarks is hidden: every page, figure and csv is linked, every benchmark listed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.contest import benchmarks, load

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md", *sorted(DOCS.rglob("*.md"))]


def linked(page: Path) -> set[Path]:
    """The files of this repository that a page links to."""
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    return {(page.parent / target).resolve() for target in targets if "://" not in target}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_broken(page):
    assert [str(target) for target in linked(page) if not target.exists()] == []


def test_every_file_of_the_docs_is_linked_from_a_page():
    told = set().union(*map(linked, PAGES))
    hidden = [path for path in sorted(DOCS.rglob("*")) if path.is_file() and path.resolve() not in told]
    assert [str(path.relative_to(ROOT)) for path in hidden] == []


def test_every_page_is_reached_from_the_readme():
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        new = {page for page in set().union(*map(linked, new)) if page.suffix == ".md"} - reached
    assert {page.resolve() for page in DOCS.rglob("*.md")} <= {page.resolve() for page in reached}


def test_every_benchmark_and_its_file_is_listed():
    load()
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    subjects = {each.name.partition("/")[0] for each in benchmarks(quick=False)}
    assert sorted(subject for subject in subjects if f"`{subject}`" not in text) == []
    files = [path for path in (ROOT / "benchmarks").glob("*.py") if "\n@benchmark(" in path.read_text()]
    assert sorted(path.name for path in files if f"`{path.name}`" not in text) == []


def test_every_module_of_the_package_is_in_the_table_of_the_house():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "gentickets"
    whole = ("models", "metrics", "data", "objectives", "search", "testing", "lab/report")  # told as a folder
    hidden = []
    for path in sorted(source.rglob("*.py")):
        name = path.relative_to(source).as_posix()
        if path.name.startswith("__") or name.startswith(tuple(f"{folder}/" for folder in whole)):
            continue
        if f"`{name}`" not in text:
            hidden.append(name)
    assert hidden == []
