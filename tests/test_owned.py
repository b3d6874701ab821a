"""The keys that named things own: read off the source without running it, they are what the running thing takes."""

import inspect
import subprocess
import sys
from typing import get_type_hints

import pytest

from gentickets.catalogue import CATALOGUE, load
from gentickets.lab.recipe.owned import GIVEN, REQUIRED, owner

EVERYTHING = [(kind, name) for kind, names in CATALOGUE.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), EVERYTHING, ids=lambda part: part)
def test_what_is_read_off_the_source_is_what_runs(kind, name):
    target, read = load(kind, name), owner(kind, name)
    takes = {key: one for key, one in inspect.signature(target).parameters.items() if key not in GIVEN[kind]}
    assert list(read.options) == list(takes)
    hints = get_type_hints(target, include_extras=True)
    for key, one in takes.items():
        option = read.options[key]
        assert option.type == hints[key]
        if one.default is one.empty:
            assert option.default is REQUIRED
        elif "factory" not in repr(one.default):
            assert option.default == one.default
    assert read.words


@pytest.mark.parametrize(("kind", "name"), EVERYTHING, ids=lambda part: part)
def test_every_option_says_what_it_means(kind, name):
    for option in owner(kind, name).options.values():
        assert option.meaning.endswith("."), option


def test_reading_all_of_them_loads_no_torch():
    code = (
        "import sys\nfrom gentickets.catalogue import CATALOGUE\nfrom gentickets.lab.recipe.owned import owner\n"
        "print(sum(len(owner(kind, name).options) for kind, names in CATALOGUE.items() for name in names))\n"
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(found[0]) > 50
    assert found[1] == "False"
