"""A search in one's own loop: its controls one by one, averages that are judged, and how far it is."""

import copy
import itertools
import re

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import gentickets as gt
from gentickets.masks.names import named_state
from gentickets.training import Settings, train
from gentickets.training.averaging import Average

IMAGES = torch.rand(40, 10, generator=torch.Generator().manual_seed(2))


def step_through(model, masks, start, end):
    """A loop of one's own; yields after each step."""
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    with masks.hold(model, adam):
        for step in range(start, end):
            batch = IMAGES[torch.randint(0, 40, (8,), generator=torch.Generator().manual_seed(step))]
            adam.zero_grad()
            (model["decoder"](model["encoder"](batch)) - batch).square().mean().backward()
            adam.step()
            yield


def plain(model, masks, start, end):
    for _ in step_through(model, masks, start, end):
        pass


@pytest.fixture
def make(make_autoencoder):
    return lambda: nn.ModuleDict(dict(make_autoencoder().named_children()))


def equal(one, other):
    ours, theirs = named_state(one), named_state(other)
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in ours.items())


# -- controls -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rewind_step", [0, 2])
def test_the_controls_of_a_level_are_those_of_the_functions_and_trained_as_long(make, rewind_step):
    spans = []

    def noted(model, masks, start, end):
        spans.append((start, end))
        plain(model, masks, start, end)

    *_, level = gt.imp(make, plain, steps=6, rewind_step=rewind_step, rounds=2, fraction=0.4)
    before = copy.deepcopy(level.model)
    state = torch.get_rng_state()
    found = dict(gt.search_controls(level, make, noted, steps=6, seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(before, level.model)
    assert list(found) == ["random_mask", "redrawn_weights"]
    assert spans == [(rewind_step, 6), (0, 6)] == [control.span for control in found.values()]
    expected = gt.random_mask_control(level, 3)
    assert found["random_mask"].masks == expected.masks != level.masks
    assert found["redrawn_weights"].masks == level.masks
    for arm, control in found.items():
        assert (control.index, control.ticket.origin["control"]) == (2, arm)
        control.masks.audit(control.model)
        again = control.ticket.install(make())
        plain(again, control.masks, *control.span)
        assert equal(again, control.model)
    # Equal seeds, equal controls, whatever was drawn in between; another seed, others.
    torch.manual_seed(99)
    for seed, alike in ((3, True), (4, False)):
        for arm, control in gt.search_controls(level, make, plain, steps=6, seed=seed):
            assert equal(control.model, found[arm].model) is alike


def test_a_saved_ticket_has_the_same_controls_as_its_level(make, tmp_path):
    *_, level = gt.imp(make, plain, steps=6, rewind_step=2, rounds=2, fraction=0.4)
    level.ticket.save(tmp_path / "a.ticket")
    ticket = gt.Ticket.load(tmp_path / "a.ticket")
    pairs = (gt.search_controls(which, make, plain, steps=6, seed=1) for which in (level, ticket))
    for (arm, one), (same, other) in zip(*pairs, strict=True):
        assert (arm, one.index, one.span, one.masks) == (same, other.index, other.span, other.masks)
        assert equal(one.model, other.model)


def test_a_fine_tuned_ticket_has_controls_as_long_as_itself(make):
    *_, level = gt.imp(make, plain, steps=6, rewind_step=2, rounds=1, retrain="fine-tune")
    spans = [control.span for _, control in gt.search_controls(level.ticket, make, plain, steps=6)]
    assert spans == [(6, 10), (0, 6)]


def test_what_controls_cannot_be_had_of_is_one_line(make):
    model = make()
    masks = gt.prune(gt.magnitude(model), fraction=0.5)
    bare = gt.Ticket(masks, model)
    with pytest.raises(gt.PruneError, match=r"step of training.*rewind_step=\.\.\."):
        gt.search_controls(bare, make, plain, steps=4)
    (_, control), *_ = gt.search_controls(bare, make, plain, steps=4, rewind_step=1)
    assert control.span == (1, 4)
    for wrong, said in (
        ({"arms": ["random"]}, r"arms='random' is none of random_mask, redrawn_weights"),
        ({"rewind_step": 4}, "rewind_step=4 is out of range"),
        ({"seed": -1}, "seed=-1"),
        ({"steps": 0}, "steps=0"),
    ):
        with pytest.raises(gt.PruneError, match=said):
            gt.search_controls(bare, make, plain, **{"steps": 4, "rewind_step": 0, **wrong})
    with pytest.raises(gt.PruneError, match="masks alone"):
        gt.search_controls(gt.Ticket(masks), make, plain, steps=4, rewind_step=0)
    with pytest.raises(gt.PruneError, match="not of a Masks"):
        gt.search_controls(masks, make, plain, steps=4)
    with pytest.raises(gt.TicketError, match="another architecture"):
        gt.search_controls(bare, lambda: {"encoder": nn.Linear(2, 2)}, plain, steps=4, rewind_step=0)
    with pytest.raises(gt.MaskError, match="left weights alive"):
        list(
            gt.search_controls(bare, make, lambda m, *_: nn.init.ones_(m["encoder"][0].weight), steps=4, rewind_step=0)
        )


def test_a_model_that_seeds_itself_has_no_re_drawn_control(make):
    def same():
        torch.manual_seed(5)
        return make()

    *_, level = gt.imp(same, plain, steps=3, rounds=1)
    for which in (level, level.ticket):
        with pytest.raises(gt.PruneError, match="seeds itself"):
            list(gt.search_controls(which, same, plain, steps=3, arms="redrawn_weights"))


# -- averages -----------------------------------------------------------------------------------------------


def averaging(form):
    """A training that returns averages in one of the forms that users have."""

    def train_(model, masks, start, end):
        mean = copy.deepcopy(model)
        wrapped = AveragedModel(model)
        for _ in step_through(model, masks, start, end):
            wrapped.update_parameters(model)
            with torch.no_grad():
                for ours, raw in zip(mean.parameters(), model.parameters(), strict=True):
                    ours.lerp_(raw, 0.3)
        return {"model": mean, "wrapped": wrapped, "one": {"decoder": mean["decoder"]}}[form]

    return train_


@pytest.mark.parametrize("form", ["model", "wrapped", "one"])
def test_averages_are_judged_and_masks_are_drawn_from_raw_weights(make, form):
    torch.manual_seed(1)
    levels = list(gt.imp(make, averaging(form), steps=6, rounds=2, fraction=0.4))
    torch.manual_seed(1)
    raw = list(gt.imp(make, plain, steps=6, rounds=2, fraction=0.4))
    for level, other in zip(levels, raw, strict=True):
        assert level.masks == other.masks
        assert equal(level.model, other.model)
        assert other.averaged is None
        assert other.judged is other.model
        level.masks.audit(level.judged)
        averaged = ("decoder",) if form == "one" else ("encoder", "decoder")
        for name in ("encoder", "decoder"):
            assert equal(level.judged[name], level.model[name]) is (name not in averaged)
        assert level.judged["decoder"](torch.zeros(1, 3)).shape == (1, 10)
        if form == "one":
            assert [name for name, _ in level.averaged.named_children()] == ["decoder"]
    for below, level in itertools.pairwise(levels):
        assert level.masks == gt.prune(gt.magnitude(below.model), fraction=0.4, within=below.masks)


def test_averages_of_the_training_loop_are_taken_over(make_autoencoder):
    class Ten:
        def at(self, step):
            return torch.rand(4, 10, generator=torch.Generator().manual_seed(step))

    class Flat(gt.Autoencoding):
        averaged = ("decoder",)

    def by(settings):
        def train_(model, masks, start, end):
            done.append(train(model, Flat(), Ten(), settings, masks=masks, start_step=start, end_step=end))
            return done[-1]

        return train_

    done = []
    (level,) = gt.imp(make_autoencoder, by(Settings(steps=4, batch_size=4, ema=0.5, seed=0)), steps=4, rounds=0)
    assert equal(level.judged.decoder, done[0].averaged.decoder)
    assert equal(level.judged.encoder, level.model.encoder)
    (level,) = gt.imp(make_autoencoder, by(Settings(steps=4, batch_size=4, ema=None, seed=0)), steps=4, rounds=0)
    assert level.averaged is None


@pytest.mark.parametrize("several", [True, False])
def test_an_average_of_one_component_is_held(make, several):
    model = make()
    masks = gt.prune(gt.magnitude(model), fraction=0.5)
    ema = {"decoder": AveragedModel(copy.deepcopy(model["decoder"]))}
    other = gt.random_like(masks, 1)
    with masks.hold(model, torch.optim.Adam(model.parameters()), copies=[ema] if several else ema) as hold:
        masks.select("decoder").audit(ema)
        hold.move_to(other)
        (masks & other).select("decoder").audit(ema)
        nn.init.ones_(ema["decoder"].module[0].weight)
        with pytest.raises(gt.MaskError, match="averaged copy"):
            hold.audit()
        (masks & other).select("decoder").apply_(ema)
    for wrong in ({"dec": model["decoder"]}, {"decoder": nn.Linear(2, 2)}):
        with pytest.raises(gt.MaskError, match=r"no component 'dec'|no weight 'decoder\.0\.weight'"):
            masks.hold(model, copies=wrong)


class Shadowed:
    """An average as diffusers' `EMAModel` and torch_ema keep it: the parameters in their order, and no model."""

    def __init__(self, weights):
        self.shadow_params = [weight.detach().clone() for weight in weights]

    def step(self, weights):
        for ours, raw in zip(self.shadow_params, weights, strict=True):
            ours.lerp_(raw.detach(), 0.3)


RETURNED = {
    "beside None": lambda ema, whole: {"decoder": ema, "encoder": None},
    "beside losses": lambda ema, whole: ({"decoder": ema}, [0.1, torch.tensor(0.2)]),
    "beside a number": lambda ema, whole: {"decoder": ema, "loss": 0.1, "losses": torch.rand(3)},
    "beside the model": lambda ema, whole: {"decoder": ema, "model": whole["itself"], "encoder": torch.rand(3)},
    "in a list": lambda ema, whole: [{"decoder": ema}],
    "bare": lambda ema, whole: ema,
    "bare in a list": lambda ema, whole: [ema],
    "its state": lambda ema, whole: {"decoder": ema.state_dict()},
    "its bare state": lambda ema, whole: ema.module.state_dict(),
    "its shadows": lambda ema, whole: {"decoder": whole["shadows of one"]},
    "all shadows": lambda ema, whole: whole["shadows"],
    "all state": lambda ema, whole: whole["state"],
}


@pytest.mark.parametrize("form", RETURNED)
def test_averages_are_taken_in_whichever_form_they_are_returned(make, form):
    def train_(model, masks, start, end):
        ema, one, all_ = AveragedModel(model["decoder"], multi_avg_fn=averaged), *map(Shadowed, weights(model))
        for _ in step_through(model, masks, start, end):
            ema.update_parameters(model["decoder"])
            for shadows, own in zip((one, all_), weights(model), strict=True):
                shadows.step(own)
        state = {f"decoder.{name}": tensor for name, tensor in ema.module.state_dict().items()}
        state |= {f"encoder.{name}": tensor for name, tensor in model["encoder"].state_dict().items()}
        given["whole"] = {"itself": model, "shadows of one": one, "shadows": all_, "state": state}
        given["ema"] = copy.deepcopy(ema.module)
        return RETURNED[form](ema, given["whole"])

    def weights(model):
        return list(model["decoder"].parameters()), list(model.parameters())

    def averaged(ours, raw, count):
        torch._foreach_lerp_(ours, raw, 0.3)

    given = {}
    for level in gt.imp(make, train_, steps=4, rewind_step=1, rounds=1):
        shadows = given["whole"]["shadows of one" if form == "its shadows" else "shadows"].shadow_params
        expected = shadows if "shadows" in form else list(given["ema"].parameters())
        found = level.judged if form == "all shadows" else level.judged["decoder"]
        assert all(torch.equal(one, other) for one, other in zip(found.parameters(), expected, strict=True))
        assert not equal(level.judged["decoder"], level.model["decoder"])
        if form != "all shadows":
            assert equal(level.judged["encoder"], level.model["encoder"])
        level.masks.audit(level.judged)


def test_an_average_of_parameters_alone_has_singular_vectors_of_its_own():
    def make():
        return {"net": nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(10, 10)))}

    def train_(model, masks, start, end):
        average = Shadowed(model["net"].parameters())
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        model["net"](IMAGES)
        return {"net": average}

    (level,) = gt.imp(make, train_, steps=1, rounds=0)
    for net in (level.judged["net"].eval(), level.averaged["net"].eval()):
        assert torch.linalg.matrix_norm(net[0].weight, 2).item() == pytest.approx(1, abs=1e-5)


class ByHand:
    """An average as it is written by hand: tensors by the names of weights."""

    def __init__(self, net):
        self.shadow = {name: weight.detach().clone() for name, weight in net.named_parameters()}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda make: nn.Linear(2, 2), "a Linear that is no average of the model or a component: give a model of it"),
        (lambda make: ({"loss": 1.0}, nn.Linear(2, 2)), "a Linear that is no average"),
        (lambda make: {"encoder": make()["decoder"]}, "a Sequential for 'encoder', which is no average of it"),
        (lambda make: {"decoder": {"0.weight": torch.ones(12, 3)}}, "a dict for 'decoder', which is no average"),
        (lambda make: {"decoder": [torch.ones(12, 3)]}, "a list for 'decoder', which is no average"),
        (lambda make: {"ema": make()["decoder"]}, "no component 'ema': the model has encoder, decoder"),
        (lambda make: {"ema": {"decoder": make()["decoder"]}}, "no component 'ema'"),
        (lambda make: Shadowed([torch.ones(3)]), "a Shadowed that is no average of the model"),
        (lambda make: ByHand(make()["decoder"]), "a ByHand that is no average of the model"),
        (lambda make: {"decoder": ByHand(make()["decoder"])}, "a ByHand for 'decoder', which is no average"),
        (lambda make: [make()["decoder"], make()["decoder"]], "two averages of 'decoder'"),
        (lambda make: (make(), make()["decoder"]), "two averages of 'decoder'"),
    ],
)
def test_what_holds_weights_and_is_no_average_of_the_model_is_refused(make, given, said):
    with pytest.raises(gt.MaskError, match=re.escape(said)):
        list(gt.imp(make, lambda *_: given(make), steps=2, rounds=0))


def test_an_average_without_a_name_that_fits_two_components_is_refused():
    def make():
        return {name: nn.Linear(3, 3) for name in ("one", "other")}

    with pytest.raises(gt.MaskError, match="a Linear that fits one and other"):
        list(gt.imp(make, lambda *_: nn.Linear(3, 3), steps=2, rounds=0))
    (level,) = gt.imp(make, lambda model, *_: model["one"], steps=2, rounds=0)
    assert level.averaged is None


class Around(nn.Module):
    """What trains a model, as Lightning's modules do, and is no average of it."""

    def __init__(self, model):
        super().__init__()
        self.net = model


@pytest.mark.parametrize(
    "given",
    [
        *(None, 3, {"loss": 1.0}, {}, nn.MSELoss(), torch.rand(3), [0.1, torch.rand(2)], {"losses": [torch.rand(3)]}),
        *({"decoder": torch.tensor(0.3), "encoder": 0.1}, "itself", "with losses", "its optimiser", "around it"),
    ],
)
def test_what_is_no_average_is_ignored(make, given):
    def train_(model, masks, start, end):
        plain(model, masks, start, end)
        optimiser = torch.optim.Adam(model.parameters())
        own = {"itself": model, "with losses": (model, [0.1]), "its optimiser": optimiser, "around it": Around(model)}
        return own[given] if isinstance(given, str) else given

    (level,) = gt.imp(make, train_, steps=2, rounds=0)
    assert level.judged is level.model


def test_averages_that_are_alive_where_weights_are_pruned_or_of_no_component_are_refused(make):
    def dense_mean(model, masks, start, end):
        plain(model, masks, start, end)
        return {"decoder": make()["decoder"]}

    with pytest.raises(gt.MaskError, match=r"averages.*begin them as a copy"):
        list(gt.imp(make, dense_mean, steps=2, rounds=1))
    with pytest.raises(gt.MaskError, match=r"no component 'dec': the model has encoder, decoder"):
        list(gt.imp(make, lambda m, *_: {"dec": make()["decoder"]}, steps=2, rounds=0))


def test_an_average_of_the_whole_takes_weights_beside_the_components_along():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 3)
            self.shift = nn.Parameter(torch.zeros(3))

    def train_(model, masks, start, end):
        mean = copy.deepcopy(model)
        nn.init.ones_(mean.shift)
        return mean

    class Other(Shifted):
        """The same weights, in a class of its own."""

    def train_other(model, masks, start, end):
        mean = Other()
        nn.init.ones_(mean.shift)
        return mean

    for returning in (train_, train_other):
        (level,) = gt.imp(Shifted, returning, steps=1, rounds=0)
        assert type(level.judged) is Shifted
        assert torch.equal(level.judged.shift, torch.ones(3))
        assert torch.equal(level.model.shift, torch.zeros(3))


def test_controls_have_averages_too(make):
    *_, level = gt.imp(make, plain, steps=3, rounds=1)
    for _, control in gt.search_controls(level, make, averaging("one"), steps=3):
        assert not equal(control.judged["decoder"], control.model["decoder"])


# -- how far it is ------------------------------------------------------------------------------------------


def test_a_search_says_how_far_it_is(make, capsys):
    list(gt.imp(make, plain, steps=4, rewind_step=1, rounds=2, fraction=0.5, progress=True))
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "dense model: 0 of 10 steps done"
    assert re.fullmatch(r"round 1 of 2, 50.0% pruned: 4 of 10 steps done, \d+ s left", lines[1])
    assert re.fullmatch(r"round 2 of 2, 75.0% pruned: 7 of 10 steps done, \d+ s left", lines[2])
    assert lines[3] == "round 2 of 2, 75.0% pruned: 10 of 10 steps done"
    assert len(lines) == 4
    list(gt.imp(make, plain, steps=4, rounds=1))
    assert capsys.readouterr() == ("", "")


def test_every_search_says_so_and_counts_what_is_left(make, capsys):
    def firsts():
        return [line.partition(" steps")[0] for line in capsys.readouterr().err.splitlines()]

    *_, level = levels = list(gt.one_shot(make, plain, steps=4, sparsities=[0.5, 0.8], progress=True))
    assert firsts()[:2] == ["dense model: 0 of 12", "round 1 of 2, 50.0% pruned: 4 of 12"]
    list(gt.imp(make, plain, steps=4, rounds=3, after=levels[0], progress=True))
    assert firsts()[0] == "round 1 of 3, 19.9% pruned: 0 of 12"
    list(gt.at_init(make, plain, steps=4, sparsities=[0.5], score=gt.magnitude, with_dense=False, progress=True))
    assert firsts()[0] == "round 1 of 1, 50.0% pruned: 0 of 4"
    carried = {"carry": {"encoder": "encoder"}, "progress": True}
    list(gt.transferred(make, plain, steps=4, tickets=[level.ticket], **carried))
    assert firsts()[0] == "dense model: 0 of 8"
    list(gt.transferred(make, plain, steps=4, tickets=iter([level.ticket]), **carried))  # nobody knows how many
    assert firsts() == ["dense model", "round 1, 84.6% pruned"]
    list(gt.search_controls(level, make, plain, steps=4, progress=True))
    assert firsts()[0] == "random mask, 79.8% pruned: 0 of 8"


def test_on_a_terminal_it_is_a_bar(make, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as rich takes a stream for a terminal
    list(gt.imp(make, plain, steps=2, rounds=1, progress=True))
    shown = capsys.readouterr().err
    assert "round 1 of 1, 19.9% pruned" in shown
    assert "━" in shown


def test_averages_of_all_components_of_a_plain_module_are_put_into_a_copy_of_it():
    """`nn.Module()` with components is of the class of the averages' own container too."""

    def make():
        made = nn.Module()
        made.encoder, made.decoder = nn.Linear(4, 3), nn.Linear(3, 4)
        return made

    model = make()
    averaged = nn.Module()
    averaged.encoder, averaged.decoder = (Average(nn.Linear(*of), 0.9) for of in ((4, 3), (3, 4)))
    level = gt.Level(0, gt.Masks.dense(model), model, gt.Ticket(gt.Masks.dense(model), model), averaged=averaged)
    assert type(level.judged.encoder) is nn.Linear
    assert torch.equal(level.judged.encoder.weight, averaged.encoder.network.weight)
