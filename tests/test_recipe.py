"""Recipes: every mistake is one line that names the key, the value and what is possible."""

import json
from pathlib import Path

import pytest

from gentickets.errors import RecipeError
from gentickets.lab.recipe import differing_keys, make_recipe, read_recipe, read_training, with_keys
from gentickets.models import options_of
from gentickets.objectives import ELBO
from gentickets.training.loop import Settings

RECIPES = Path(__file__).parent.parent / "recipes"
QUICK = RECIPES / "quickstart" / "autoencoder.yaml"


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_recipe_of_the_project_is_valid(path):
    recipe = read_recipe(path)
    assert make_recipe(recipe.dump()) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.step=3", "unknown key training.step; known here: steps, batch_size"),
        ("speed=3", "unknown key speed; known here: name, title, model"),
        ("training.steps=-3", "training.steps=-3"),
        ("training.lr=fast", "training.lr='fast'"),
        ("training.precision=8-bit", "training.precision='8-bit'"),
        ("model.name=stylegan", "model.name='stylegan' is none of linear-autoencoder"),
        (
            "model.critic_norm=false",
            "model.critic_norm: linear-autoencoder takes width, depth, latent, hidden",
        ),
        ("objective.beta=2", "objective.beta: autoencoding takes loss"),
        ("objective.loss=hinge", "objective.loss='hinge': input should be 'mse', 'l1' or 'bce'"),
        ("objective={name: adversarial, loss: wasserstein}", "loss=wasserstein needs clip="),
        (
            "search.components=[generator]",
            "no component 'generator'; linear-autoencoder has encoder, decoder",
        ),
        ("search.fraction=1.5", "search.fraction=1.5"),
        ("search.scope=universe", "search.scope='universe'"),
        ("search.method=snip", "search.rewind_step: at-init takes rounds, fraction"),
        ("search.rewind_step=999999", "search.rewind_step=999999 is not before training.steps"),
        ("seeds=[1, 1]", "seeds=[1, 1]"),
        ("seeds=[]", "seeds"),
        ("name=../elsewhere", "name='../elsewhere'"),
        ("training.lr={encoder: 0.1}", "one for each of encoder, decoder"),
        ("controls.levels=some", "controls.levels='some'"),
        ("steps", "is not key=value"),
        ("name.first=3", "name is a value"),
    ],
)
def test_a_mistake_is_one_line(override, message):
    with pytest.raises(RecipeError) as caught:
        read_recipe(QUICK, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_are_yaml_and_exponents_are_numbers():
    recipe = read_recipe(QUICK, ["training.lr=1e-4", "seeds=[3]", "data.flip=true", "search.components=[encoder]"])
    assert (recipe.training.lr, recipe.seeds, recipe.data.flip) == (1e-4, [3], True)
    assert recipe.search.components == ["encoder"]


def test_files_that_are_no_recipe(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,")
    with pytest.raises(RecipeError, match="no YAML"):
        read_recipe(broken)
    broken.write_text("- 1")
    with pytest.raises(RecipeError, match="it holds list"):
        read_recipe(broken)
    with pytest.raises(RecipeError, match="cannot read recipe"):
        read_recipe(tmp_path / "absent.yaml")


def test_controls_spread_over_the_ladder():
    recipe = read_recipe(QUICK, ["controls={}"])
    assert recipe.controls.chosen(9) == [3, 6, 9]
    assert recipe.controls.chosen(1) == [1]
    assert recipe.controls.chosen(0) == []


def test_differing_keys_are_named_with_both_values():
    one, two = (read_recipe(QUICK, [f"training.steps={n}"]).dump() for n in (700, 800))
    assert differing_keys(one, two) == ["training.steps (700 there, 800 here)"]


# -- what lies just on this side and just on that one ---------------------------------------------------------


def parts(**changes):
    """A small recipe as plain data, with other values at some keys."""
    raw = {
        "name": "tiny",
        "model": {"name": "linear-autoencoder"},
        "objective": {"name": "autoencoding"},
        "training": {"steps": 100},
    }
    return with_keys(raw, changes, "test")


def test_a_rewind_step_lies_before_the_last_step():
    assert make_recipe(parts(**{"search.rewind_step": 99})).search.rewind_step == 99
    with pytest.raises(RecipeError, match=r"search\.rewind_step=100 is not before training\.steps=100"):
        make_recipe(parts(**{"search.rewind_step": 100}))


def test_one_training_is_not_asked_what_a_search_rewinds_to():
    with pytest.raises(RecipeError, match=r"search\.rewind_step=\d+ is not before training\.steps=20"):
        read_recipe(QUICK, ["training.steps=20"])
    asked = read_training(QUICK, ["training.steps=20"])
    assert (asked.training.steps, asked.search.rewind_step) == (20, 0)
    for said in (["search.rewind_step=10"], []):  # as in folders of before
        assert read_training(QUICK, said) == read_recipe(QUICK, said)
    with pytest.raises(RecipeError, match=r"search\.rewind_step='last'"):
        read_training(QUICK, ["training.steps=20", "search.rewind_step=last"])


def test_controls_may_be_at_the_deepest_level_and_no_deeper():
    controls = make_recipe(parts(**{"controls.levels": [1, 4, 5]})).controls
    assert controls.chosen(4) == [1, 4]
    assert controls.chosen(0) == []
    spread = make_recipe(parts()).controls
    assert [spread.chosen(rounds) for rounds in (1, 2, 4, 10)] == [[1], [1, 2], [2, 3, 4], [4, 7, 10]]


@pytest.mark.parametrize("method", ["imp", "one-shot", "snip", "random-at-init"])
def test_channels_are_for_early_birds(method):
    with pytest.raises(RecipeError, match=r"search\.granularity: .* takes .*; it is a key of early-bird"):
        make_recipe(parts(**{"search.method": method, "search.granularity": "channel"}))
    early = make_recipe(parts(**{"search.method": "early-bird", "search.granularity": "channel"}))
    assert early.search.granularity == "channel"


@pytest.mark.parametrize("method", ["early-bird", "snip", "grasp", "synflow", "magnitude-at-init", "random-at-init"])
@pytest.mark.parametrize("change", [{"rewind_step": 1}, {"retrain": "learning-rate"}, {"retrain": "fine-tune"}])
def test_what_prunes_before_training_has_nothing_to_rewind(method, change):
    assert make_recipe(parts(search={"method": method})).build_method().rewind_step == 0
    with pytest.raises(RecipeError, match=rf"search\.{next(iter(change))}: .* it is a key of imp, one-shot"):
        make_recipe(parts(search={"method": method, **change}))


def test_a_pruning_that_never_comes_is_refused_before_anything_is_trained():
    with pytest.raises(RecipeError, match=r"search\.every=100: no step that it divides lies between begin=0\.25"):
        make_recipe(parts(search={"method": "gradual", "every": 100}))
    assert make_recipe(parts(search={"method": "gradual"})).rounds == 10


def test_what_another_method_has_by_default_says_nothing():
    """As recipes of before say it: `search: {method: snip, rewind_step: 0, retrain: rewind}`."""
    said = {"method": "snip", "rewind_step": 0, "retrain": "rewind", "others": None}
    assert make_recipe(parts(search=said)) == make_recipe(parts(search={"method": "snip"}))
    with pytest.raises(RecipeError, match=r"search\.rewind_step: .* it is a key of imp"):
        make_recipe(parts(search=said | {"rewind_step": 1}))
    with pytest.raises(RecipeError, match=r"search\.rewind_stepp: .*did you mean"):
        make_recipe(parts(search={"method": "imp", "rewind_stepp": None}))


@pytest.mark.parametrize("change", [{"include": ["encoder.*"]}, {"exclude": ["encoder.*"]}])
def test_early_birds_prune_whole_components(change):
    with pytest.raises(RecipeError, match=rf"search\.{next(iter(change))}: early-bird takes .*components"):
        make_recipe(parts(search={"method": "early-bird", **change}))
    assert make_recipe(parts(search=change)).search.method == "imp"


@pytest.mark.parametrize("missing", ["source", "carry"])
def test_a_transfer_needs_both_a_source_and_what_to_carry(missing):
    search = {"method": "transferred", "source": "there", "carry": {"encoder": "encoder"}}
    assert make_recipe(parts(search=search)).search.source == "there"
    with pytest.raises(RecipeError, match=rf"search\.{missing} is missing"):
        make_recipe(parts(search={key: value for key, value in search.items() if key != missing}))


def test_changing_keys_leaves_what_was_given_as_it_was():
    raw = {"search": {"rounds": 3}, "training": {"lr": {"encoder": 0.1}}}
    before = json.dumps(raw)
    new = with_keys(raw, {"search.rounds": 5, "training": {"lr": {"decoder": 0.2}}, "seeds": [1]}, "here")
    assert new == {"search": {"rounds": 5}, "training": {"lr": {"encoder": 0.1, "decoder": 0.2}}, "seeds": [1]}
    new["training"]["lr"]["encoder"] = 0.9
    assert json.dumps(raw) == before


def test_the_ladder_of_sparsities():
    search = make_recipe(parts(**{"search.fraction": 0.2})).build_method()
    assert [search.sparsity_at(level) for level in range(4)] == pytest.approx([0.0, 0.2, 0.36, 0.488])


def test_settings_are_those_of_the_recipe_with_the_seed():
    training = {
        "steps": 7, "batch_size": 3, "lr": {"encoder": 0.1, "decoder": 0.2}, "betas": [0.1, 0.2], "weight_decay": 0.3,
        "schedule": "linear", "warmup_steps": 2, "ema": 0.4, "clip_norm": 0.5, "execution": "dense",
    }  # fmt: skip
    found = make_recipe(parts(training=training)).training.settings(seed=9)
    assert found == Settings(**{**training, "betas": (0.1, 0.2)}, seed=9)


def test_an_objective_has_the_latent_size_of_its_model():
    vae = parts(model={"name": "conv-vae", "latent": 5}, objective={"name": "elbo", "beta": 3.0})
    assert make_recipe(vae).build_objective() == ELBO(5, beta=3.0)
    plain = make_recipe({**vae, "model": {"name": "conv-vae"}}).build_objective()
    assert plain.latent_size == options_of("conv-vae")["latent"]


def test_budgets_come_before_overrides_and_full_is_the_recipe_as_written(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(parts() | {"budgets": {"desk": {"training.steps": 50, "seeds": [4]}}}))
    assert read_recipe(path).training.steps == read_recipe(path, budget="full").training.steps == 100
    desk = read_recipe(path, ["training.steps=60"], budget="desk")
    assert (desk.training.steps, desk.seeds) == (60, [4])
    with pytest.raises(RecipeError, match=r"--budget lunch: .* knows desk, full"):
        read_recipe(path, budget="lunch")


def test_the_recipe_that_an_older_run_keeps_is_read_with_changes(tmp_path):
    """It has every key of every method, as run folders once had: with `train` one goes on from it."""
    kept = make_recipe(parts()).dump()
    kept["search"] |= {"score_batches": 10, "window": 5, "tolerance": 0.2, "source": None}
    kept["objective"] |= {"clip": None, "n_critic": None}
    del kept["evaluation"]["classifiers"]
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(kept))
    with pytest.raises(RecipeError, match=r"clip|score_batches"):  # somebody's own, which says what nobody reads
        read_recipe(path)
    (tmp_path / "origin.json").write_text(json.dumps({"asked": kept}))
    recipe = read_recipe(path, ["training.steps=60"])
    assert (recipe.training.steps, recipe.evaluation.classifiers) == (60, 1)
    assert recipe.search == make_recipe(parts()).search
    with pytest.raises(RecipeError, match="window"):  # what is typed today is for today's keys
        read_recipe(path, ["search.window=4"])


@pytest.mark.parametrize("written", [{"fractoin": 0.5}, {"window": 4}, {"score_batches": None}])
def test_what_somebody_writes_into_the_recipe_that_a_run_keeps_is_read_or_refused(tmp_path, written):
    kept = make_recipe(parts()).dump()
    kept["search"] |= {"score_batches": 10, "window": 5}
    (tmp_path / "origin.json").write_text(json.dumps({"asked": kept}))
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**kept, "search": {**kept["search"], **written}}))
    with pytest.raises(RecipeError, match=f"search.{next(iter(written))}"):
        read_recipe(path)
    path.write_text(json.dumps({**kept, "search": {**kept["search"], "fraction": 0.25}}))
    assert read_recipe(path).search.fraction == 0.25
