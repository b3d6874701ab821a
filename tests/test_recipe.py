"""Recipes: every mistake is one line that names the key, the value and what is possible."""

from pathlib import Path

import pytest

from gentickets.errors import RecipeError
from gentickets.lab.recipe import differing_keys, make_recipe, read_recipe

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
        ("objective.loss=hinge", "objective.loss='hinge' is none of mse, l1, bce"),
        ("objective={name: adversarial, loss: wasserstein}", "loss=wasserstein needs clip="),
        (
            "search.components=[generator]",
            "no component 'generator'; linear-autoencoder has encoder, decoder",
        ),
        ("search.fraction=1.5", "search.fraction=1.5"),
        ("search.scope=universe", "search.scope='universe'"),
        ("search.method=snip", "search.rewind_step must be 0"),
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
