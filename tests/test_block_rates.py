"""Rates of blocks by the overlap of two tickets: a budget that holds, chance beside it, and no signal said aloud."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gentickets as gt
from gentickets.errors import GenticketsError, PruneError
from gentickets.lab.recipe import make_recipe
from gentickets.lab.report.rates import rates_of_blocks
from gentickets.lab.results.reading import read_run
from gentickets.lab.run.seed import SeedRun
from gentickets.lab.run.stage import load_data, make_judge
from gentickets.search.block_rates import block_of, block_rates, pruned_by_block

SIZES = {"net.stem.weight": 40, "net.down.0.a.weight": 300, "net.down.1.a.weight": 200, "net.down.1.b.weight": 100}


def masks(seed, densities):
    rng = torch.Generator().manual_seed(seed)
    return gt.Masks(
        {
            name: torch.randperm(size, generator=rng) < round(size * density)
            for (name, size), density in zip(SIZES.items(), densities, strict=True)
        }
    )


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("denoiser.down.0.blocks.1.conv1.weight", "denoiser.down.0"),
        ("denoiser.stem.weight", "denoiser.stem"),
        ("denoiser.attention.query.weight", "denoiser.attention"),
        ("decoder.3.weight", "decoder.3"),
        ("weight", ""),
    ],
)
def test_a_block_is_named_up_to_its_first_number(name, block):
    assert block_of(name) == block


shares = st.lists(st.floats(0.05, 1.0), min_size=4, max_size=4)


@settings(max_examples=40, deadline=None)
@given(shares, shares, st.floats(0.1, 0.95), st.floats(-3, 3), st.integers(0, 99))
def test_the_rates_keep_what_was_asked_and_nowhere_more_than_all(one, other, sparsity, strength, seed):
    rates = block_rates(masks(seed, one), masks(seed + 100, other), sparsity, strength)
    assert set(rates) == {"net.stem", "net.down.0", "net.down.1"}
    kept = sum(rate.kept * rate.weights for rate in rates.values())
    assert kept == pytest.approx((1 - sparsity) * sum(SIZES.values()))
    assert all(0 < rate.kept <= 1 + 1e-9 for rate in rates.values())
    # Below all, blocks keep in proportion to what is asked of them: at least one weight.
    scales = [rate.kept / rate.asked(strength) for rate in rates.values() if rate.kept < 1 - 1e-9]
    assert scales == pytest.approx(scales[:1] * len(scales))


def test_a_block_on_which_the_two_agree_keeps_more_and_with_a_negative_strength_less():
    one, other = masks(0, [0.5] * 4), masks(1, [0.5] * 4)
    other = other.replace({"net.down.0.a.weight": one["net.down.0.a.weight"]})
    found = {strength: block_rates(one, other, 0.6, strength) for strength in (-1.0, 0.0, 1.0)}
    agreed = [found[strength]["net.down.0"] for strength in (-1.0, 0.0, 1.0)]
    assert agreed[0].kept < agreed[1].kept < agreed[2].kept
    assert agreed[1].kept == pytest.approx(0.4)
    assert agreed[1].ratio == pytest.approx(3.0)  # 1 of 1 beside 1/3
    assert found[0.0]["net.down.1"].ratio == pytest.approx(1.0, abs=0.3)


def test_what_is_empty_or_whole_in_both_has_the_ratio_of_chance():
    whole = masks(0, [1.0, 1.0, 0.5, 0.5])
    empty = gt.Masks({name: torch.zeros(size, dtype=torch.bool) for name, size in SIZES.items()})
    assert block_rates(whole, whole, 0.5)["net.stem"].ratio == 1.0
    rates = block_rates(empty, empty, 0.5)
    assert all(rate.ratio == 1.0 and rate.kept > 0 and not math.isnan(rate.kept) for rate in rates.values())


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.1])
def test_a_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(PruneError, match="sparsity="):
        block_rates(masks(0, [0.5] * 4), masks(1, [0.5] * 4), sparsity)


def test_each_block_keeps_its_best_weights_and_no_more(make_autoencoder):
    torch.manual_seed(0)
    model = make_autoencoder()
    dense, scores = gt.Masks.dense(model), gt.magnitude(model)
    pair = [gt.prune(gt.magnitude(model), to_sparsity=0.5), gt.random_like(gt.prune(scores, to_sparsity=0.5), seed=1)]
    rates = block_rates(*pair, 0.7)
    found = pruned_by_block(scores, rates, dense, model)
    for block, rate in rates.items():
        names = [name for name in dense if block_of(name) == block]
        alive = sum(int(found[name].sum()) for name in names)
        assert 0 <= alive - rate.kept * rate.weights < 1
        kept = torch.cat([scores[name][found[name]] for name in names])
        gone = torch.cat([scores[name][~found[name]] for name in names])
        assert not len(gone) or kept.min() >= gone.max()


RECIPE = {
    "model": {"name": "linear-autoencoder", "hidden": [16], "latent": 4},
    "data": {"source": "digits", "size": 8, "limit": 60},
    "objective": "autoencoding",
    "training": {"steps": 20, "batch_size": 8, "lr": 0.01},
    "search": {"method": "block-rates", "rounds": 2, "fraction": 0.5, "rewind_step": 2},
    "evaluation": {"features": "none", "metrics": ["reconstruction_mse"]},
    "controls": {"levels": [1]},
}


def made(folder, **search):
    recipe = make_recipe({**RECIPE, "name": folder.name, "search": {**RECIPE["search"], **search}})
    train, held_out = load_data(recipe.data)
    folder.mkdir()
    (folder / "recipe.yaml").write_text(json.dumps(recipe.dump()))
    SeedRun(recipe, folder, 0, train, make_judge(recipe, train, held_out)).run()
    return folder / "seed-0"


def read(place, name):
    return json.loads((place / name).read_text())


def test_a_run_tells_its_rates_and_what_the_second_network_took(tmp_path):
    run = made(tmp_path / "signal", least=0.5)
    facts = read(run / "level-01", "block-rates.json")
    assert facts["signal"] is True
    assert facts["blocks"].keys() == {"encoder.1", "encoder.3", "decoder.0", "decoder.2"}
    ticket = gt.Ticket.load(run / "level-01" / "ticket.safetensors")
    assert ticket.origin["block_rates"]["ratio"] == facts["ratio"] > 1.2  # equal first weights
    for block, rate in facts["blocks"].items():
        (name,) = [name for name in ticket.masks if block_of(name) == block]
        assert 0 <= int(ticket.masks[name].sum()) - rate["kept"] * rate["weights"] < 1
    assert ticket.masks.sparsity == pytest.approx(0.5, abs=0.01)
    dense, first, second = (read(run / f"level-0{level}", "timing.json") for level in range(3))
    searched = [level["find_seconds"] - dense["train_seconds"] for level in (first, second)]
    assert min(searched) > 0.2 * dense["train_seconds"]
    assert searched[0] == pytest.approx(searched[1], rel=0.5)  # trained once, counted for both
    assert (run / "level-01" / "second.safetensors").exists()
    assert not (run / "level-02" / "second.safetensors").exists()
    assert (run / "level-01-random_mask" / "metrics.json").exists()
    (first, second) = rates_of_blocks(read_run(run.parent))
    assert [row[0] for row in first.rows] == list(facts["blocks"])
    assert f"{facts['ratio']:.2f} times as much" in first.words
    assert second.sparsity == "75.0%"


def test_without_a_signal_it_says_so_and_takes_the_densities(tmp_path):
    with pytest.warns(UserWarning, match=r"level 1: the two tickets overlap .* times .* mean densities alone"):
        run = made(tmp_path / "none", rounds=1, least=9.0)
    facts = read(run / "level-01", "block-rates.json")
    assert facts["signal"] is False
    assert "no signal on 1 of 1 seeds" in rates_of_blocks(read_run(run.parent))[0].words
    scales = [rate["kept"] / rate["density"] for rate in facts["blocks"].values()]
    assert scales == pytest.approx([scales[0]] * len(scales))


def test_or_stops_where_that_is_asked(tmp_path):
    with pytest.raises(GenticketsError, match=r"search\.least=9\.0 .* search\.no_signal=density"):
        made(tmp_path / "stops", rounds=1, least=9.0, no_signal="stop")
