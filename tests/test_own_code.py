"""Code of one's own, by name: models, criteria, metrics and images from a file that stands beside the recipe."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickle
import re
import shutil
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import gentickets as gt
from gentickets import data
from gentickets.catalogue import Named, changed_code, digests
from gentickets.cli import main, telling
from gentickets.data import ImageSet
from gentickets.errors import DataError, RecipeError, TicketError
from gentickets.lab.recipe import make_recipe, read_recipe, with_keys
from gentickets.lab.recipe.file import kept_recipe
from gentickets.lab.run.checks import check_buildable
from gentickets.lab.run.folder import check_same_code
from gentickets.lab.run.stage import load_data
from gentickets.lab.study.study import read_study
from gentickets.lab.task import made_model
from gentickets.terminal import Terminal

MINE = '''
import numpy as np
from torch import nn

import gentickets as gt


def make_gan(width: int = 16, latent: int = 6):
    generator = nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, 64), nn.Unflatten(1, (1, 8, 8)))
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))
    return {"generator": generator, "discriminator": discriminator}


def bars(size):
    return images(size)[0]


def images(size, channels=1):
    """Bars that slant, in three classes."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 200)
    place = np.arange(size)[None, :, None] * (label - 1)[:, None, None] + np.arange(size)[None, None, :]
    return np.clip(np.sin(place) / 2 + 0.5 + rng.normal(0, 0.05, (200, size, size)), 0, 1), label


def brightness(samples, images):
    """How far the mean brightness is off."""
    return abs(samples.mean() - images.mean())


def contrast(samples, images, *, power: float = 2.0):
    """Spread of the samples."""
    return samples.std() ** power


contrast.lower_is_better = False


def squared(model, masks, *, power: float = 2.0):
    """Magnitude to a power."""
    return {name: score.abs() ** power for name, score in gt.magnitude(model, include=tuple(masks)).items()}
'''

RECIPE = """
name: own
model: mine.py:make_gan
data: {source: "mine.py:bars", size: 8}
objective: adversarial
training: {steps: 20, batch_size: 16}
search: {rounds: 2, fraction: 0.5, rewind_step: 2, criterion: {name: "mine.py:squared", power: 1.5}}
controls: {levels: [2]}
evaluation: {metrics: [kid, "mine.py:brightness", {name: "mine.py:contrast", power: 1}], primary: contrast, samples: 64}
"""


def run_program(folder: Path, *arguments: object) -> tuple[int, str, str]:
    """Runs the program here, in a folder: (exit code, output, complaints)."""
    said, complained = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(complained):
        patch.chdir(folder)
        patch.setenv("COLUMNS", "250")
        patch.setattr(telling, "out", Terminal())  # as wide as is said now
        patch.setattr(sys, "argv", ["gentickets", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
    return left.value.code or 0, said.getvalue(), complained.getvalue()


def refused(folder: Path, *arguments: object) -> str:
    """The one line with which the program refuses."""
    code, _, err = run_program(folder, *arguments)
    lines = [line for line in err.splitlines() if not line.startswith(("data: ", "seed "))]
    assert (code, len(lines)) == (2, 1), err
    return lines[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with code, a recipe that names it, and a run of that."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(MINE)
    (folder / "gan.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENTICKETS_CACHE", str(folder / "cache"))
        code, _, err = run_program(folder, "find", "gan.yaml", "--allow-code")
    assert code == 0, err
    return folder


@pytest.fixture
def at(made, monkeypatch) -> Path:
    """The same as the current folder."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("GENTICKETS_CACHE", str(made / "cache"))
    return made


# -- metrics ----------------------------------------------------------------------------------------------------


def test_metrics_of_ones_own_are_measured_by_their_names_and_may_decide(at):
    metrics = json.loads((at / "runs/own/seed-0/level-02/metrics.json").read_text())
    assert metrics["primary"] == "contrast"
    assert set(metrics["metrics"]) == {"kid", "brightness", "contrast"}
    told = metrics["metrics"]["contrast"]
    assert (told["label"], told["lower_is_better"]) == ("Spread of the samples", False)
    assert metrics["metrics"]["brightness"]["lower_is_better"]
    with (at / "runs/own/results.csv").open() as file:
        assert {"brightness", "contrast"} <= set(next(csv.reader(file)))


def test_the_origin_has_the_digest_of_all_code(at):
    code = json.loads((at / "runs/own/origin.json").read_text())["code"]
    assert sorted(code) == [f"mine.py:{name}" for name in ("bars", "brightness", "contrast", "make_gan", "squared")]
    assert set(code.values()) == {hashlib.sha256(MINE.encode()).hexdigest()}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "[mine.py:nowhere]",
            "evaluation.metrics.name=mine.py:nowhere: 'nowhere' is not there; mine.py has make_gan, bars",
        ),
        ("[{name: mine.py:contrast, powre: 2}]", r"evaluation.metrics.powre: .*did you mean power\?"),
        ("[mine.py:brightness, mine.py:brightness]", "'brightness' is there twice: results need names that differ"),
        ("mine.py:brightness", r"a list of names is needed, such as \[mine.py:brightness\]"),
        ("[{name: kid}]", "is no name: write frechet, or my.py:name for one of your own"),
        ("[3]", "evaluation.metrics: 3 is no name"),
        ("[fid]", "evaluation.metrics: 'fid' is none of frechet, kid"),
    ],
)
def test_what_is_no_metric_is_refused(at, said, message):
    found = refused(at, "find", "gan.yaml", "--allow-code", "--plan", "name=x", f"evaluation.metrics={said}")
    assert re.search(message, found), found


def test_a_metric_of_samples_is_none_of_an_autoencoder(at):
    found = refused(
        at, "find", "quickstart/vae", "--plan", "model.name=conv-autoencoder", "objective={name: autoencoding}",
        "data={source: digits, size: 8}", "model={name: conv-autoencoder, width: 4, latent: 4}",
        "evaluation={metrics: [mine.py:brightness]}",
    )  # fmt: skip
    assert "'brightness' compares samples, and Autoencoding makes none" in found


# -- images -----------------------------------------------------------------------------------------------------


def own_recipe(**keys):
    return make_recipe({"name": "x", "model": "dcgan", "objective": "adversarial", **keys})


def test_images_of_ones_own_are_held_out_and_told_as_any(at):
    train, held_out = load_data(own_recipe(data={"source": "mine.py:images", "size": 8}).data)
    assert (len(train), len(held_out), train.shape) == (180, 20, (1, 8, 8))
    assert set(train.labels) == {0, 1, 2}
    assert train.told["read"] == "180 training and 20 held-out images of mine.py:images"
    assert "float64 of 0 to 1" in train.told["also"]
    fewer, same = load_data(own_recipe(data={"source": "mine.py:images", "size": 8, "limit": 50}).data)
    assert (len(fewer), same.fingerprint) == (50, held_out.fingerprint)
    assert load_data(own_recipe(data={"source": "mine.py:images", "size": 8}).data)[0].fingerprint == train.fingerprint
    assert load_data(own_recipe(data={"source": "mine.py:images", "size": 9}).data)[0].shape == (1, 9, 9)


def test_a_function_of_the_split_is_asked_for_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "import numpy as np\n"
        "def images(split, limit=None):\n"
        "    rng = np.random.default_rng(['train', 'test'].index(split))\n"
        "    return rng.integers(0, 256, ({'train': 30, 'test': 7}[split], 3, 8, 9), dtype=np.uint8)\n"
    )
    train, held_out = load_data(own_recipe(data={"source": "mine.py:images", "size": 8}).data)
    assert (len(train), len(held_out), train.shape) == (30, 7, (3, 8, 8))


@settings(max_examples=10)
@given(
    arrays_of.arrays(np.uint8, st.tuples(st.just(8), st.sampled_from([1, 3]), st.just(6), st.just(6))), st.booleans()
)
def test_whatever_form_they_have_the_images_are_the_same(tmp_path_factory, pixels, labelled):
    pixels[:, 0, 0, :2] = [0, 255]  # so that bytes are bytes
    pixels[:, 0, 0, 2] = np.arange(8)
    labels = np.arange(8) % 2 if labelled else None
    held = pixels[::-1].copy()
    held[:, 0, 0, 2] += 8
    expected = [ImageSet.from_arrays("x", part, labels).fingerprint for part in (pixels, held)]
    folder = tmp_path_factory.mktemp("cache")
    channels = pixels.shape[1]

    def loaded(of):
        source = data.given("x", of)
        return [s.fingerprint for s in data.load_splits(source, size=6, channels=channels, cache=folder)]

    def pair(part):
        return part if labels is None else (part, labels)

    def forms(part):
        yield pair(part)
        yield pair(torch.from_numpy(part.copy()))
        yield pair(part.transpose(0, 2, 3, 1))
        yield pair(part / 255)
        yield pair((part / 127.5 - 1).astype(np.float32))
        yield ImageSet.from_arrays("y", part, labels)

    for one, other in zip(forms(pixels), forms(held), strict=True):
        assert loaded({"train": one, "test": other}) == expected


def colours() -> list[Image.Image]:
    """White above, and below a colour of each image's own."""
    pixels = np.full((12, 6, 6, 3), 255, np.uint8)
    pixels[:, 3:] = np.stack([np.arange(12) * 20, 255 - np.arange(12) * 20, np.arange(12) * 7], axis=1)[:, None, None]
    return [Image.fromarray(one) for one in pixels]


def everything(given_images, cache) -> np.ndarray:
    """All images, in their order."""
    source = data.given("x", {"train": given_images, "test": given_images[:2]})
    return data.load(source, size=6, cache=cache).pixels


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "YCbCr", "HSV", "RGBA", "L", "LA", "1"])
def test_pil_images_are_what_a_viewer_shows(tmp_path, mode):
    images = [one.quantize(8) if mode == "P" else one.convert(mode) for one in colours()]
    expected = np.stack([np.asarray(one.convert("RGB")).transpose(2, 0, 1) for one in images])
    assert np.array_equal(np.broadcast_to(everything(images, tmp_path), expected.shape), expected)


def test_pil_images_keep_what_their_files_say(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    clear = [one.convert("RGBA") for one in colours()]
    for number, one in enumerate(clear):
        one.putalpha(0 if number == 0 else 255)
        one.save(tmp_path / f"{number}.png", exif=exif)
    pixels = everything([Image.open(tmp_path / f"{number}.png") for number in range(12)], tmp_path)
    assert (pixels[0] == 255).all()
    assert pixels[1, :, 0, 0].tolist() == [20, 235, 7]
    assert pixels[1, :, 5, 5].tolist() == [255, 255, 255]


def test_faint_images_whose_scale_is_known_stay_faint(tmp_path):
    pixels = np.zeros((12, 1, 6, 6), np.uint8)
    pixels[:, 0, 0] = np.arange(12)[:, None] % 2
    for form in ([Image.fromarray(one[0]) for one in pixels], ImageSet.from_arrays("y", pixels)):
        of = data.given("x", {"train": form, "test": [Image.new("L", (6, 6), value) for value in (3, 200)]})
        assert np.array_equal(data.load(of, size=6, cache=tmp_path).pixels, pixels)


def keyed() -> Image.Image:
    image = Image.new("L", (6, 6), 17)
    image.info["transparency"] = 1
    return image


MASKED = np.ma.masked_equal(np.arange(8 * 36, dtype=np.uint16).reshape(8, 6, 6) % 256, 100)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (colours()[0], "x gives a single PIL image for train: give .*, a list of PIL images"),
        ((*colours()[:2],), "x gives a single PIL image for train"),
        ([*colours(), Image.new("L", (5, 6))], "x gives images of 6x6 and of 5x6 for train: resize them to one size"),
        ([*colours(), np.zeros((6, 6, 3))], "x gives a ndarray among the PIL images of train"),
        ([keyed()] * 8, "x, image 0 of train has a transparent colour, .*: save it with an alpha channel"),
        ([Image.new("F", (6, 6))] * 8, r"x, image 0 of train has 32 bits a pixel \(mode F"),
        ([Image.fromarray(np.full((6, 6), 9, np.uint16))] * 8, "x, image 0 of train has 16 bits a pixel .*mode I;16"),
        (MASKED, "x gives an array with masked values, .*: give filled"),
        (list(MASKED), "masked values"),
        ((MASKED.filled(0), np.ma.masked_array(np.arange(8), mask=np.arange(8) == 1)), "masked values"),
        (torch.rand(8, 6, 6, requires_grad=True), r"x gives a Tensor that is no array \(Can't call numpy"),
        (torch.empty(8, 6, 6, device="meta"), "no array .*meta"),
        (torch.rand(8, 6, 6, dtype=torch.complex64), "is of complex64: save images as uint8"),
        (torch.rand(8, 6, 6).to_sparse(), "no array .*Sparse"),
        (torch.rand(8, 6, 6).bfloat16(), "no array .*BFloat16"),
        ([np.zeros((6, 6)), np.zeros((5, 6))], "x gives a list that is no array"),
        (np.array([np.zeros((6, 6)), None], object), "x gives a ndarray: give"),
    ],
)
def test_what_would_be_read_amiss_is_refused_in_one_line(tmp_path, found, message):
    with pytest.raises(DataError, match=message) as caught:
        data.load_splits(data.given("x", found), size=6, cache=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("here", "x gives a str: give an array"),
        (None, "x gives a NoneType"),
        (np.zeros((8, 8)), "x gives an array of the shape 8 x 8 for train"),
        ({"test": np.zeros((8, 6, 6))}, "x gives a mapping of test: give an array"),
        ({"train": np.zeros((8, 6, 6)), "val": 3}, "x gives 'val' beside train and test"),
        ((np.zeros((8, 6, 6)), np.zeros((8, 6, 6))), "a pair is .images, labels."),
        ((np.zeros((8, 6, 6)), np.zeros(5)), "an array of the shape 5 of labels for 8 images of train: one each"),
        ((1, 2, 3), "x gives 3 things for train"),
        ([[1], [2, 3]], "x gives a list that is no array"),
        (np.random.default_rng(0).normal(0, 9, (8, 6, 6)), "x, train is float64 from .* nothing says which is black"),
        (np.full((8, 6, 6), np.nan), "NaN or infinity"),
        (np.ones((8, 6, 6)), "from 1 to 1, and nothing says which is black"),
        (np.full((8, 5, 6, 7), 200, np.uint8), "nothing says which axis is which"),
        (np.zeros((0, 6, 6), np.uint8), "is empty"),
    ],
)
def test_what_are_no_images_is_refused_in_one_line(tmp_path, found, message):
    with pytest.raises(DataError, match=message) as caught:
        data.load_splits(data.given("x", found), size=6, cache=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "def images(path): ...",
            "data.source=theirs.py:images needs 'path', which nothing tells it: give it a default",
        ),
        ("def images():\n    return 1 / 0", r"theirs.py:images failed \(line 2: ZeroDivisionError: division by zero\)"),
        ("def pictures(): ...", "theirs.py:images: 'images' is not there; theirs.py has pictures"),
        ("import nothing_there", r"running theirs.py failed \(line 1: ModuleNotFoundError"),
        (
            "import time, numpy as np\n"
            "def images():\n    return np.random.default_rng(time.perf_counter_ns()).random((200, 8, 8))",
            "the data of 'theirs.py:images' has changed since; draw them by a fixed seed",
        ),
    ],
)
def test_a_function_that_gives_no_images_is_refused(tmp_path, code, message):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "gan.yaml").write_text(RECIPE)
    (tmp_path / "theirs.py").write_text(code)
    found = refused(tmp_path, "find", "gan.yaml", "--allow-code", "name=x", "data.source=theirs.py:images")
    assert re.search(message, found), found


# -- nobody's code runs unasked ---------------------------------------------------------------------------------


def test_a_folder_runs_no_code_by_itself(at, tmp_path):
    recipe = kept_recipe(own_recipe(data={"source": "mine.py:images"}).dump(), "there")
    with pytest.raises(RecipeError, match=r"^mine.py:images is code, which a file does not run by itself"):
        load_data(recipe.data)
    with pytest.raises(RecipeError, match="is code"):
        load_data(pickle.loads(pickle.dumps(recipe)).data)


def test_of_a_run_whose_recipe_was_made_to_name_code_none_runs(at, tmp_path):
    forged = tmp_path / "runs"
    shutil.copytree(at / "runs/own", forged / "own")
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\n\ndef thing(*given, **more): ...\n")
    place = forged / "own/recipe.yaml"
    text = place.read_text()
    level = "runs/own/seed-0/level-02"
    deep = (
        ["evaluate", "runs/own"],
        ["shrink", level],
        ["find", "runs/own/recipe.yaml"],
        ["train", "runs/own/recipe.yaml"],
    )
    shown = ["report", "runs/own"], ["inspect", "runs/own"], ["inspect", level], ["list", "runs"]
    names = dict.fromkeys(re.findall(r"mine\.py:\w+", text))
    forged_recipes = [text.replace(name, "evil.py:thing") for name in names]
    cases = [(one, command) for one in forged_recipes for command in deep]
    cases += [(re.sub(r"mine\.py:\w+", "evil.py:thing", text), command) for command in shown]
    for recipe, command in cases:
        place.write_text(recipe)
        code, _, err = run_program(tmp_path, *command)
        assert code == 2 or command in shown
        assert "Traceback" not in err
    assert not (tmp_path / "ran").exists()


# -- small networks ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(made) -> Path:
    code, said, err = run_program(
        made, "shrink", "runs/own/seed-0/level-02", "--allow-code", "--out", "small.safetensors"
    )
    assert code == 0, err
    assert "gentickets.load_small('small.safetensors', make_model=make_gan) reads it" in said
    return made / "small.safetensors"


def test_a_small_network_of_ones_own_model_comes_back_by_what_makes_it(at, small):
    ticket = gt.Ticket.load(small)
    network = ticket.origin["network"]
    assert network["model"] == "mine.py:make_gan"
    assert network["code"] == hashlib.sha256(MINE.encode()).hexdigest()
    with pytest.raises(TicketError, match=r"no file runs by itself: .*load_small\(path, make_model=make_gan\)"):
        gt.load_small(small)
    level = gt.Ticket.load(at / "runs/own/seed-0/level-02/ticket.safetensors")
    whole = nn.ModuleDict(own("make_gan")())
    whole.load_state_dict(load_file(at / "runs/own/seed-0/level-02/trained.safetensors"))
    level.masks.apply_(whole)
    noise, images = torch.randn(5, 6), torch.randn(5, 1, 8, 8)
    state = torch.get_rng_state()
    for make in (own("make_gan"), lambda width, latent, size: own("make_gan")(width, latent), own("make_gan")):
        loaded = gt.load_small(small, make_model=make)
        assert not loaded.training
        torch.testing.assert_close(loaded["generator"](noise), whole["generator"](noise))
        torch.testing.assert_close(loaded["discriminator"](images), whole["discriminator"](images))
    assert torch.equal(state, torch.get_rng_state())
    ticket.masks.audit(loaded)


def own(name: str):
    """Something of `mine.py`, as whoever wrote it has it."""
    space: dict = {}
    exec(MINE, space)
    return space[name]


def test_a_small_network_of_another_model_is_refused(small):
    def deeper():
        made = own("make_gan")()
        made["generator"].append(nn.Linear(8, 8))
        return made

    for make, message in (
        (deeper, "it lacks generator.4.weight"),
        (lambda: {"generator": own("make_gan")()["generator"]}, "no small network"),
        (lambda: 3, "a model is one nn.Module .* not a int"),
        (lambda elsewhere: own("make_gan")(), "missing 1 required"),
        (lambda: {"generator": nn.Conv2d(1, 1, 3), "discriminator": nn.Flatten()}, "no small network"),
    ):
        with pytest.raises(TicketError, match=message) as caught:
            gt.load_small(small, make_model=make)
        assert "\n" not in str(caught.value)


def test_changed_code_shrinks_nothing(at, small, tmp_path):
    shutil.copytree(at / "runs/own", tmp_path / "runs/own")
    (tmp_path / "mine.py").write_text(MINE.replace("nn.ReLU()", "nn.Tanh()"))
    found = refused(tmp_path, "shrink", "runs/own/seed-0/level-02", "--allow-code")
    assert "the code of mine.py:make_gan has changed since the run began: put it back" in found
    found = refused(tmp_path, "find", "runs/own/recipe.yaml", "--allow-code")
    assert "the code of mine.py:bars, mine.py:brightness" in found


def test_files_that_code_imports_are_part_of_it(tmp_path, monkeypatch):
    files = {
        "nets/mine.py": "import numpy, torch.nn\nfrom layers import act\ndef make():\n    import late.deep\n",
        "nets/layers.py": "from parts import norms as n, none\nimport gentickets",
        "nets/parts/__init__.py": "from .sizes import *\nfrom . import norms",
        "nets/parts/sizes.py": "import layers",
        "nets/parts/norms.py": "from ..above import x",
        "nets/late/deep.py": "",
        "nets/unused.py": "",
        "nets/__init__.py": "",
        "nets.py": "",
        "other.py": "",
        "pack/__init__.py": "import other",
        "pack/inner/__init__.py": "",
        "pack/inner/models.py": "from ..layers import act\nfrom . import sizes\ndef make(): pass",
        "pack/inner/sizes.py": "import broken",
        "pack/layers.py": "act = 1",
        "broken.py": "def (",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    beside = {f"nets/{name}.py" for name in ("layers", "parts/__init__", "parts/sizes", "parts/norms", "late/deep")}
    found = digests(["nets/mine.py:make", "adversarial"])
    assert set(found) == {"nets/mine.py:make", *beside}
    for name in beside:
        assert found[name] == hashlib.sha256(files[name].encode()).hexdigest()
    models = SimpleNamespace(__file__=str(tmp_path / "pack/inner/models.py"))
    monkeypatch.setattr("gentickets.catalogue._imported", lambda *_: models)
    found = digests(["pack.inner.models:make"])
    of_pack = {f"pack/{name}.py" for name in ("__init__", "inner/__init__", "inner/sizes", "layers")}
    assert set(found) == {"pack.inner.models:make", *of_pack, "other.py", "broken.py"}
    assert changed_code(found, found) == []
    assert changed_code({**found, "other.py": "x"}, found) == ["other.py"]
    old = {"pack.inner.models:make": found["pack.inner.models:make"]}  # of before imports were told
    assert changed_code(old, found) == []
    assert changed_code({}, found) == ["pack.inner.models:make"]


def test_a_run_goes_on_with_the_files_that_its_code_imports_alone(at, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("from layers import MORE\n" + MINE)
    (tmp_path / "layers.py").write_text("MORE = 1")
    shutil.copytree(at / "runs/own", tmp_path / "runs/own")
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe("runs/own/recipe.yaml", allow_code=True)
    now = recipe.code()
    assert now["layers.py"] == hashlib.sha256(b"MORE = 1").hexdigest()
    before = {name: digest for name, digest in now.items() if name != "layers.py"}
    for known in (before, now):
        check_same_code(Path("runs/own"), {"code": known}, recipe)
    (tmp_path / "layers.py").write_text("MORE = 2")
    check_same_code(Path("runs/own"), {"code": before}, recipe)  # of before imports were told
    with pytest.raises(RecipeError, match=r"the code of layers\.py has changed since the run began: put it back"):
        check_same_code(Path("runs/own"), {"code": now}, recipe)


# -- what can be pruned -----------------------------------------------------------------------------------------

ODD = """
import torch
from torch import nn


class Own(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, width))


def odd(width: int = 8):
    assert torch.ones(()).item() == 1  # it may read its weights while it is made
    layers = [nn.Linear(4, width), nn.BatchNorm1d(width), Own(width), nn.Embedding(3, width)]
    return {"net": nn.Sequential(*layers), "head": nn.Linear(width, 2)}


def bound(): return {"net": nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))}
def norms(): return {"net": nn.LayerNorm(3)}
def three(): return 3
def empty(): return {}
def lazy(): return {"net": nn.LazyLinear(3)}
def broken(): raise RuntimeError("no\\nway")
def clashing(width: int = 3, depth: int = 2):
    if width < depth:
        raise ValueError(f"width={width} is below depth={depth}")
"""


def cells(said: str) -> list[list[str]]:
    """The rows of the tables that were printed."""
    lines = (line for line in said.splitlines() if line.startswith("│"))
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_what_can_be_pruned_is_told_before_anything_is(tmp_path):
    (tmp_path / "odd.py").write_text(ODD)
    code, said, err = run_program(tmp_path, "inspect", "--model", "odd.py:odd", "width=10")
    assert (code, err) == (0, "")
    assert said.startswith("odd.py:odd (width=10) for images of 16x16, 1 channel\n")
    assert "example inputs, guessed: head " in said
    assert "; none was found for net; --example my.py:name" in said
    assert cells(said) == [
        ["net", "140", "40", "28.6%", "1"],
        ["head", "22", "20", "90.9%", "1"],
        ["all", "162", "60", "37.0%", "2"],
        ["net", "a bias, a gain or a number", "10", "1", "net.0.bias"],
        ["net", "of a norm", "20", "2", "net.1.weight"],
        ["net", "Own: neither a convolution nor a linear layer", "40", "1", "net.2.weight"],
        ["net", "an embedding", "30", "1", "net.3.weight"],
        ["head", "a bias, a gain or a number", "2", "1", "head.bias"],
    ]
    _, said, _ = run_program(tmp_path, "inspect", "--model", "odd.py:norms")
    assert "nothing is pruned by default" in said
    _, said, _ = run_program(tmp_path, "inspect", "--model", "odd.py:bound")
    assert "refused by every search as it is: 'net.parametrizations.weight.original' cannot be pruned" in said


@pytest.mark.parametrize(("name", "channels"), [("dcgan", 3), ("conv-vae", 1), ("unet", 1)])
def test_what_is_told_of_a_model_is_what_a_search_prunes(tmp_path, name, channels):
    _, said, _ = run_program(tmp_path, "inspect", "--model", name, "--channels", channels, "model.width=8")
    model = made_model(Named("model", name, {"width": 8}), 16, channels)
    every = [row for row in cells(said) if row[0] == "all"]
    masks = gt.Masks.dense(model)
    weights = sum(parameter.numel() for parameter in model.parameters())
    share = f"{masks.total / weights:.1%}"
    assert every == [["all", f"{weights:,}", f"{masks.total:,}", share, str(len(masks))]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("odd.py:three", "model=odd.py:three makes no model: a model is one nn.Module .* not an? int"),
        ("odd.py:empty", "model=odd.py:empty makes no model"),
        ("odd.py:broken", r"odd.py:broken failed \(line 23: RuntimeError: no way\)"),
        ("odd.py:clashing depth=9", r"odd.py:clashing failed \(line 26: ValueError: width=3 is below depth=9\)"),
        ("odd.py:clashing depht=9", r"model.depht: odd.py:clashing takes width, depth \(did you mean depth\?\)"),
        ("odd.py:odd width=wide", "model.width='wide': input should be a valid integer"),
        ("odd.py:odd data.size=8", "data: with --model, key=value are the model's own"),
        ("odd.py:od", r"'od' is not there; odd.py has Own, odd, .* \(did you mean odd\?\)"),
        ("odd.py:lazy", "'net.weight' has no shape yet"),
        ("nowhere.py:odd", "cannot read nowhere.py"),
        ("nowhere:odd", "there is no module 'nowhere'; a file is named as my.py:name"),
        ("dcgan --size 5", "size=5: the models take images of side 8, 16, 28, 32, 64"),
        ("dcgna", "'dcgna' is none of .*did you mean dcgan.*, nor code of your own: as my.py:name"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, arguments, message):
    (tmp_path / "odd.py").write_text(ODD)
    found = refused(tmp_path, "inspect", "--model", *arguments.split())
    assert re.search(message, found), found


def test_inspect_asks_for_one_thing(tmp_path):
    assert "one file or folder, or --model" in refused(tmp_path, "inspect")


# -- what does not go together ----------------------------------------------------------------------------------

THEIRS = """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np, torch
from torch import nn

import gentickets as gt
from gentickets.options import Count


def gan(latent: int = 6, seen: int = 64):
    generator = nn.Sequential(nn.Linear(latent, 64), nn.Unflatten(1, (1, 8, 8)))
    return {"generator": generator, "discriminator": nn.Sequential(nn.Flatten(), nn.Linear(seen, 1))}


def untold(): return gan()
def tall(): return {"generator": nn.Sequential(nn.Linear(6, 60), nn.Unflatten(1, (1, 10, 6))),
                    "discriminator": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1))}
def nets(): return {"encoder": nn.Flatten(), "decoder": nn.Unflatten(1, (1, 8, 8))}
def pair(): return nn.Linear(2, 2), nn.Linear(2, 2)


class Picky(nn.Linear):
    def forward(self, images, labels):
        return super().forward(images.flatten(1))


def picky(): return {"generator": gan()["generator"], "discriminator": Picky(64, 1)}


@dataclass(frozen=True)
class Halves(gt.Objective):
    share: float = 0.5
    other: float = 0.5
    code: Count = 6
    broken: str = ""
    components: ClassVar = ("generator",)

    def __post_init__(self):
        if self.share + self.other != 1:
            raise ValueError(f"share={self.share} and other={self.other} do not make 1")
        if self.broken == "made":
            raise RuntimeError("so it is")

    def losses(self, model, batch, rng):
        if self.broken == "losses":
            raise LookupError("lost")
        fake = model.generator(torch.randn(len(batch), 6, generator=rng))
        loss = (fake - batch).square()
        yield "generator", loss if self.broken == "loss" else loss.mean()

    def example_inputs(self, model, images):
        return {"decoder" if self.broken == "name" else "generator": images.new_zeros(2, self.code)}

    def sample(self, model, count, rng, labels=None):
        return model.generator(torch.randn(count, 6, generator=rng))


def failing(model, masks, *, at: int = 0):
    if at == len(masks):
        return {}
    return {name: score[0] / 0 if at else [][1] for name, score in gt.magnitude(model).items()}


@dataclass(frozen=True)
class Bound:
    objective: object
    strength: float = 1.0

    def __post_init__(self):
        raise ValueError(f"strength={self.strength} is too much")


def by_numpy():
    nets = gan()
    weight = nets["generator"][0].weight
    weight.data = torch.from_numpy(np.random.normal(size=weight.shape)).float()
    return nets


class OfFunctions(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 64)
        self.steps = [lambda code: self.layer(code).unflatten(1, (1, 8, 8))]

    def forward(self, code):
        return self.steps[0](code)


def of_functions(): return {**gan(), "generator": OfFunctions()}
"""


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("model=theirs.py:gna", r"model.name=theirs.py:gna: 'gna' is not there; theirs.py has gan, .*did you mean gan"),
        ("model=theirs.py:pair objective.latent_size=6", "model=theirs.py:pair makes no model: .* not a tuple"),
        ("model={name: theirs.py:gan, latnet: 3}", r"model.latnet: theirs.py:gan takes latent, seen .*latent\?"),
        ("model={name: theirs.py:gan, latent: 0.5}", "model.latent=0.5: input should be a valid integer"),
        ("model=theirs.py:untold", "objective.latent_size is missing: adversarial needs it, and nothing else tells it"),
        ("model=theirs.py:nets objective.latent_size=6", "needs generator, discriminator; .* has encoder, decoder"),
        (
            "model={name: theirs.py:gan, seen: 63}",
            r"component 'discriminator' does not take what it is given \(input: float32 3x1x8x8\): RuntimeError: mat1",
        ),
        (
            "model=theirs.py:picky objective.latent_size=6",
            r"component 'discriminator' .*\(argument 1: float32 3x1x8x8\): TypeError: .* argument: 'labels'",
        ),
        ("model=theirs.py:tall objective.latent_size=6", "samples are 1x10x6, and the images 1x8x8: change the model"),
        (
            "model=theirs.py:of_functions objective.latent_size=6",
            r"model=theirs.py:of_functions: 'generator\.steps' uses 'generator' of the model.*make it a method",
        ),
        (
            "model=theirs.py:by_numpy objective.latent_size=6",
            r"model=theirs.py:by_numpy: 'generator\.0\.weight' is drawn otherwise from the same seed: draw from torch",
        ),
        ("objective=theirs.py:Halfs", r"objective.name=theirs.py:Halfs: .*did you mean Halves\?"),
        ("objective={name: theirs.py:Halves, shore: 1}", r"objective.shore: .* takes share, other.*did you mean share"),
        ("objective={name: theirs.py:Halves, share: 0.7}", "objective.share=0.7 and other=0.5 do not make 1"),
        ("objective={name: theirs.py:Halves, broken: made}", r"theirs.py:Halves failed \(line 44: RuntimeError: so it"),
        (
            "objective={name: theirs.py:Halves, broken: losses}",
            "takes no step: theirs.py, line 48: LookupError: lost",
        ),
        (
            "objective={name: theirs.py:Halves, broken: loss}",
            r"loss 0 of Halves is of the shape \(3, 1, 8, 8\): give a tensor",
        ),
        ("objective={name: theirs.py:Halves, broken: name}", "no component 'decoder': the model has generator, disc"),
        (
            "objective={name: theirs.py:Halves, code: 5}",
            r"component 'generator' does not take what it is given \(input: float32 2x5\): RuntimeError: mat1",
        ),
        ("search.criterion=theirs.py:failing", "theirs.py.*line 63: IndexError: list index out of range"),
        ("search.criterion={name: theirs.py:failing, at: 4}", "no score belongs to a weight that the masks cover"),
        ("search.around=theirs.py:Bound", "strength=1.0 is too much"),
        ("search.method=theirs.py:gan", "theirs.py:gan"),
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path, monkeypatch, made, said, message):
    monkeypatch.setenv("GENTICKETS_CACHE", str(made / "cache"))
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "theirs.py").write_text(THEIRS)
    (tmp_path / "gan.yaml").write_text(RECIPE)
    words = re.findall(r"[\w.]+=(?:\{.*?\}|\S+)", said)
    found = refused(tmp_path, "find", "gan.yaml", "--allow-code", "evaluation={metrics: [kid], samples: 64}", *words)
    assert re.search(message, found), found


COUNTING = """
import torch
from torch import nn


class Counting(nn.Linear):
    seen = 0
    size = 0

    def forward(self, x):
        self.size = len(x)
        self.seen += 1
        return super().forward(x)


class Sized(nn.Linear):
    size = 0

    def forward(self, x):
        self.size = len(x)
        return super().forward(x)


def gan(layer):
    generator = nn.Sequential(layer(6, 64), nn.Unflatten(1, (1, 8, 8)))
    return {"generator": generator, "discriminator": nn.Sequential(nn.Flatten(), nn.Linear(64, 1))}


def counting(): return gan(Counting)
def sized(): return gan(Sized)
"""


@pytest.mark.parametrize("name", ["counting", "sized"])
def test_what_no_file_of_a_run_holds_is_told(tmp_path, monkeypatch, name):
    (tmp_path / "count.py").write_text(COUNTING)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "gan.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe("gan.yaml", [f"model=count.py:{name}", "objective.latent_size=6"], allow_code=True)
    images = load_data(recipe.data)[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_buildable(recipe, images)
    told = [str(warning.message) for warning in caught if "neither a parameter" in str(warning.message)]
    assert len(told) == (name == "counting")
    assert all("'generator.0.seen' changes from step to step" in words for words in told)


def test_options_go_below_what_is_named_alone(at):
    def read(*overrides):
        return read_recipe("gan.yaml", overrides, allow_code=True)

    assert read("model.width=9").model.told("width", None) == 9
    assert read("objective.latent_size=6", "objective.n_critic=2").objective.told("n_critic", None) == 2
    assert read("search=one-shot", "search.rounds=3").search.method == "one-shot"
    recipe = read("search.criterion=mine.py:squared", "search.criterion.power=3")
    assert recipe.search.told("criterion", None).told("power", None) == 3
    budget = {"model": {"width": 5}, "objective": {"name": "adversarial", "n_critic": 3}}
    raw = with_keys({"model": "mine.py:make_gan", "objective": "elbo"}, budget, "budgets.x")
    assert raw == {"model": {"name": "mine.py:make_gan", "width": 5}, "objective": budget["objective"]}


def test_no_way_of_writing_it_lets_a_file_run_code(tmp_path):
    """However deep and dotted a study, a budget or a list names it: the file that would run is never run."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(*a, **k): ...\n")
    name = f"{tmp_path / 'evil.py'}:f"
    plain = {"name": "x", "model": "dcgan", "objective": "adversarial"}
    ways = [
        {"search": {"criterion": {"name": name}}},
        {"search": {"around": name}},
        {"evaluation": {"metrics": ["kid", name]}},
        {"data": {"source": name}},
        {"budgets": {"full": {"search.criterion": name}}},
        {"budgets": {"full": {"search": {"criterion.name": name}}}},
        {"study": {"arms": {"a": {"search.criterion": name}}}},
        {"study": {"arms": {"a": {"search.criterion.name": name}}}},
        {"study": {"arms": {"a": {"model.name": name}, "b": {"search": {"method": name}}}}},
        {"budgets": {"full": {"study.arms": {"a.search.criterion": name}}}, "study": {"arms": {"a": {}}}},
    ]
    for number, way in enumerate(ways):
        path = tmp_path / f"{number}.yaml"
        path.write_text(json.dumps(plain | way))
        with pytest.raises(gt.RecipeError, match="--allow-code"):
            read_study(path) if "study" in way else read_recipe(path)
    assert not (tmp_path / "ran").exists()


STANDARDISED = """
from torch import nn
from torch.nn import functional as F


class Standardised(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.inner = nn.Linear(a, b)

    def forward(self, x):
        weight = self.inner.weight
        return F.linear(x, weight - weight.mean(1, keepdim=True), self.inner.bias)


def make(size: int, channels: int):
    sides = channels * size * size
    first = nn.Sequential(nn.Flatten(), Standardised(sides, 16), nn.ReLU(), nn.Linear(16, 6))
    last = nn.Sequential(nn.Linear(6, sides), nn.Tanh(), nn.Unflatten(1, (channels, size, size)))
    return {"encoder": first, "decoder": last}
"""


def test_a_weight_whose_zeros_would_end_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "mine.py").write_text(STANDARDISED)
    (tmp_path / "own.yaml").write_text(
        "name: own\nmodel: mine.py:make\ndata: {source: digits, size: 8}\nobjective: autoencoding\n"
        "training: {steps: 5, batch_size: 8}\nsearch: {rounds: 1, fraction: 0.5}\n"
    )
    said = refused(tmp_path, "find", "own.yaml", "--plan", "--allow-code")
    assert "'encoder.1.inner.weight' cannot be pruned: the forward pass of Standardised makes another weight" in said
    assert "search.exclude=" in said
