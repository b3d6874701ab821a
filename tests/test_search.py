"""The searches: rounds, rewinding, what the others start from, controls; with a train function of one's own."""

import itertools
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import gentickets as gt
from gentickets.masks.names import named_state

IMAGES = torch.rand(40, 10, generator=torch.Generator().manual_seed(2))


class Recorder:
    """A train function as a user would write it; notes each call and the weights it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, model, masks, start_step, end_step):
        state = {name: tensor.detach().clone() for name, tensor in named_state(model).items()}
        self.calls.append((start_step, end_step, masks, state))
        adam = torch.optim.Adam(model.parameters(), lr=1e-2)
        with masks.hold(model, adam):
            for step in range(start_step, end_step):
                batch = IMAGES[torch.randint(0, 40, (8,), generator=torch.Generator().manual_seed(step))]
                loss = (model(batch) - batch).square().mean()
                adam.zero_grad()
                loss.backward()
                adam.step()


def test_the_rounds_of_imp(make_autoencoder):
    train = Recorder()
    levels = list(gt.imp(make_autoencoder, train, steps=12, rewind_step=4, rounds=3, fraction=0.2))
    assert [(start, end) for start, end, *_ in train.calls] == [(0, 4), (4, 12), (4, 12), (4, 12), (4, 12)]
    n = levels[0].masks.total
    for level, below in itertools.pairwise(levels):
        alive = level.masks.alive
        assert below.masks.alive == alive - int(0.2 * alive)
        assert below.masks <= level.masks
        expected = gt.prune(gt.magnitude(level.model), fraction=0.2, within=level.masks)
        assert below.masks == expected
        below.masks.audit(below.model)
    assert levels[0].masks.alive == n
    assert [entry["level"] for entry in levels[3].ticket.origin["lineage"]] == [0, 1, 2, 3]


def test_every_round_starts_from_the_weights_of_the_rewind_step(make_autoencoder):
    train = Recorder()
    levels = list(gt.imp(make_autoencoder, train, steps=12, rewind_step=4, rounds=2))
    rewind = train.calls[1][3]  # what the dense model was when training went on from step 4
    for (_, _, masks, state), level in zip(train.calls[2:], levels[1:], strict=True):
        assert masks == level.masks
        for name, tensor in state.items():
            expected = rewind[name] * masks[name] if name in masks else rewind[name]
            assert torch.equal(tensor, expected), name
    reinstalled = levels[2].ticket.install(make_autoencoder())
    assert all(torch.equal(t, named_state(reinstalled)[n]) for n, t in train.calls[3][3].items())


def test_rewinding_to_step_0_is_the_initial_draw(make_autoencoder):
    torch.manual_seed(7)
    train = Recorder()
    [*_, last] = gt.imp(make_autoencoder, train, steps=3, rounds=1)
    torch.manual_seed(7)
    initial = named_state(make_autoencoder())
    assert all(torch.equal(t, initial[name]) for name, t in last.ticket.weights.items())
    assert [call[:2] for call in train.calls] == [(0, 3), (0, 3)]


class Fading(nn.Module):
    """It counts its passes, in a number, in a buffer that is not persistent, and in a layer that it keeps in a list."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen, self.kept = nn.Linear(4, 4), 0, [nn.BatchNorm1d(4)]
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.seen += 1
        self.count += 1
        self.kept[0](x)
        return self.layer(x) * min(1.0, self.seen / 10)


def counted(model):
    return model.seen, int(model.count), int(model.kept[0].num_batches_tracked)


@pytest.mark.filterwarnings("ignore:.*neither a parameter")
@pytest.mark.parametrize("rewind_step", [0, 2])
def test_what_is_no_weight_is_rewound_too(rewind_step):
    starts = []

    def train(model, masks, start_step, end_step):
        starts.append((start_step, *counted(model)))
        for _ in range(start_step, end_step):
            model(torch.ones(3, 4))

    levels = list(gt.imp(Fading, train, steps=6, rounds=2, rewind_step=rewind_step, fraction=0.5))
    rewound = (rewind_step,) * 4
    assert starts == [(0,) * 4, *[rewound] * (3 if rewind_step else 2)]
    assert counted(levels[0].model) == (6,) * 3
    starts.clear()
    list(gt.search_controls(levels[-1], Fading, train, steps=6))
    assert starts == [rewound, (0,) * 4]
    starts.clear()
    list(gt.imp(Fading, train, steps=6, rounds=3, rewind_step=rewind_step, fraction=0.5, after=levels[2]))
    assert starts == [rewound]


def test_with_weights_that_stay_the_rest_stays_too():
    starts = []

    def train(model, masks, start_step, end_step):
        starts.append(counted(model))
        for _ in range(start_step, end_step):
            model(torch.ones(3, 4))

    levels = list(gt.imp(Fading, train, steps=6, rounds=1, fraction=0.5, retrain="fine-tune"))
    assert starts == [(0,) * 3, (6,) * 3]
    list(gt.search_controls(levels[-1], Fading, train, steps=6, arms="random_mask"))
    assert starts[2:] == [(6,) * 3]


@pytest.mark.parametrize("retrain", ["fine-tune", "learning-rate"])
def test_what_a_criterion_writes_into_its_model_no_training_begins_with(retrain):
    def writing(model, masks):
        scores = gt.magnitude(model, include=tuple(masks))
        for tensor in named_state(model).values():
            tensor.data.mul_(3)
        return scores

    def starts(criterion):
        found = []

        def train(model, masks, start_step, end_step):
            found.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            for weight in model.parameters():
                weight.data.mul_(2)

        torch.manual_seed(0)
        make = partial(nn.Sequential, nn.Linear(4, 4), nn.BatchNorm1d(4))
        list(gt.imp(make, train, steps=6, rounds=2, fraction=0.3, retrain=retrain, criterion=criterion))
        return found

    for mine, right in zip(starts(writing), starts(gt.magnitude), strict=True):
        assert all(torch.equal(mine[name], right[name]) for name in right)


# -- whoever looks at a level changes nothing ---------------------------------------------------------------


def evaluated(level):
    level.judged.eval().requires_grad_(False)


def sampled(level):
    with torch.no_grad():
        level.model(IMAGES)  # in training mode, as it is: statistics of batch norm move


def averaged_into(level):
    with torch.no_grad():
        for weight in level.model.parameters():
            weight.mul_(torch.rand_like(weight))


class Moded(Recorder):
    """Notes the modes, and the frozen weights, of what it is given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def __call__(self, model, masks, start_step, end_step):
        frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
        self.given.append((tuple(layer.training for layer in model.modules()), frozen))
        super().__call__(model, masks, start_step, end_step)


def with_modes():
    """Batch norm, dropout, a layer that is in evaluation mode as it is drawn, and a bias that is frozen."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(10, 12), nn.BatchNorm1d(12), nn.Dropout(0.3), nn.Linear(12, 10), nn.BatchNorm1d(10))
    net[4].eval()
    net[3].bias.requires_grad_(False)
    return net


def searched(search, train, look=lambda level: None, make=with_modes, **how):
    """The levels of a search, each copied before it is looked at, and its last controls."""
    arguments = {"steps": 6, "rewind_step": 2, **how}
    if search == "imp":
        found = gt.imp(make, train, rounds=2, fraction=0.4, **arguments)
    elif search == "one_shot":
        found = gt.one_shot(make, train, sparsities=[0.4, 0.6], **arguments)
    else:
        (first, *_) = gt.imp(make, Recorder(), steps=1, rounds=1)
        ticket = gt.Ticket(gt.prune(gt.magnitude(first.model), fraction=0.5), first.model)
        found = gt.transferred(make, train, tickets=[ticket, ticket], carry={"0": "0"}, **arguments)
    levels = []
    for level in found:
        levels.append((level.masks, {name: t.clone() for name, t in named_state(level.model).items()}))
        with torch.random.fork_rng():  # what looks at it draws, and dropout does
            look(level)
    return levels, level


@pytest.mark.parametrize("look", [evaluated, sampled, averaged_into])
@pytest.mark.parametrize("retrain", ["rewind", "learning-rate", "fine-tune"])
@pytest.mark.parametrize("search", ["imp", "one_shot", "transferred"])
def test_looking_at_a_level_changes_no_other(search, retrain, look):
    plain, seen = Moded(), Moded()
    torch.manual_seed(1)
    expected, _ = searched(search, plain, retrain=retrain)
    torch.manual_seed(1)
    found, last = searched(search, seen, look, retrain=retrain)
    assert seen.given == plain.given
    for (masks, state), (same, other) in zip(expected, found, strict=True):
        assert masks == same
        assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())
    begun = len(seen.given)
    list(gt.search_controls(last, lambda: redrawn(with_modes()), seen, steps=6))
    assert seen.given[begun:] == plain.given[-1:] * 2  # both controls, as the ticket


def redrawn(net):
    """Its first layer, drawn anew."""
    with torch.random.fork_rng():
        torch.manual_seed(9)
        for layer in (net[0], net[3]):
            nn.init.normal_(layer.weight)
    return net


@pytest.mark.parametrize("retrain", ["rewind", "fine-tune"])
def test_going_on_after_a_level_that_was_looked_at_trains_it_as_drawn(retrain):
    train = Moded()
    first, *_ = gt.imp(with_modes, train, steps=4, rounds=0)
    evaluated(first)
    for level in (first, gt.Level(0, first.masks, first.model, first.ticket)):  # the other as read from files
        list(gt.imp(with_modes, train, steps=4, rounds=1, after=level, retrain=retrain))
        list(gt.one_shot(with_modes, train, steps=4, sparsities=[0.5], dense=level, retrain=retrain))
    assert len(train.given) == 5
    assert len(set(map(repr, train.given))) == 1


def test_a_level_that_training_made_impossible_to_copy_is_not_lost():
    def train(model, masks, start_step, end_step):
        model.unlike = (one for one in ())  # a generator has no copy

    level, *_ = gt.imp(with_modes, train, steps=4, rounds=1)
    assert (level.index, level.model.unlike is None) == (0, False)


def test_gradients_that_a_training_leaves_are_no_part_of_the_next():
    def train(model, masks, start_step, end_step):
        """Accumulates over 4 steps, and ends amid them."""
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        left.append(any(weight.grad is not None for weight in model.parameters()))
        with masks.hold(model, optimizer):
            for step in range(start_step, end_step):
                model(IMAGES).square().mean().backward()
                if (step + 1) % 4 == 0:
                    optimizer.step()
                    optimizer.zero_grad()

    def make():
        net = nn.Linear(10, 3)
        net(IMAGES).sum().backward()  # as of a model that was trained before
        return net

    left = []
    (level,) = gt.imp(make, train, steps=9, rewind_step=2, rounds=0)
    again = level.restarted()
    train(again, level.masks, 2, 9)
    assert all(torch.equal(t, named_state(again)[n]) for n, t in named_state(level.model).items())
    list(gt.imp(make, train, steps=9, rewind_step=2, rounds=1))
    assert not any(left)


def test_what_a_ticket_does_not_hold_is_told():
    def train(model, masks, start_step, end_step):
        for _ in range(start_step, end_step):
            model(torch.ones(3, 4))

    with pytest.warns(UserWarning, match="'count' changes in training .*as it was at step 2.*make it a buffer"):
        list(gt.imp(Fading, train, steps=6, rounds=0, rewind_step=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(gt.imp(Fading, train, steps=6, rounds=0))  # from step 0 everything is as it is drawn


def test_a_hook_that_no_round_would_have_is_told(make_autoencoder):
    def make():
        model = make_autoencoder()
        model.encoder[0].weight.register_hook(lambda gradient: gradient * 0)
        return model

    with pytest.warns(UserWarning, match=r"'encoder\.0\.weight' has a hook on its gradient"):
        gt.imp(make, Recorder(), steps=2, rounds=1)


@pytest.mark.parametrize("others", ["rewind", "initial", "trained", "fresh"])
def test_what_an_unpruned_component_starts_from(make_autoencoder, others):
    draws = []

    def make():
        model = make_autoencoder()
        draws.append({name: tensor.detach().clone() for name, tensor in named_state(model).items()})
        return model

    train = Recorder()
    levels = list(gt.imp(make, train, steps=6, rewind_step=2, rounds=2, components=["encoder"], others=others))
    assert levels[1].masks.components == ("encoder",)
    started = train.calls[3][3]  # round 2
    expected = {
        "rewind": train.calls[1][3],
        "initial": draws[0],
        "trained": named_state(levels[1].model),
        "fresh": draws[-1],
    }[others]
    name = "decoder.0.weight"
    assert torch.equal(started[name], expected[name])
    # The controls, and whoever trains the ticket again, start the other component from the same.
    assert torch.equal(levels[2].ticket.weights[name], expected[name])
    assert torch.equal(gt.random_mask_control(levels[2], seed=1).weights[name], expected[name])
    assert torch.equal(started["encoder.0.bias"], train.calls[1][3]["encoder.0.bias"])
    if others == "fresh":
        assert len(draws) == 3


@pytest.mark.parametrize(("retrain", "span"), [("learning-rate", (4, 12)), ("fine-tune", (12, 20))])
def test_weights_that_stay(make_autoencoder, retrain, span):
    train = Recorder()
    levels = list(
        gt.imp(make_autoencoder, train, steps=12, rewind_step=4, rounds=2, components=["encoder"], retrain=retrain)
    )
    assert [call[:2] for call in train.calls] == [(0, 4), (4, 12), span, span]
    for (_, _, masks, state), before in zip(train.calls[2:], levels, strict=False):
        trained = named_state(before.model)
        for name, tensor in state.items():
            assert torch.equal(tensor, trained[name] * masks[name] if name in masks else trained[name]), name


def test_going_on_after_a_level_gives_the_same_levels(make_autoencoder):
    def make():
        torch.manual_seed(3)
        return make_autoencoder()

    whole = list(gt.imp(make, Recorder(), steps=6, rewind_step=2, rounds=3))
    rest = list(gt.imp(make, Recorder(), steps=6, rewind_step=2, rounds=3, after=whole[1]))
    assert [level.index for level in rest] == [2, 3]
    for one, other in zip(whole[2:], rest, strict=True):
        assert one.masks == other.masks
        assert one.ticket.to_bytes() == other.ticket.to_bytes()


def test_one_shot_prunes_each_sparsity_from_the_dense_model(make_autoencoder):
    levels = list(gt.one_shot(make_autoencoder, Recorder(), steps=6, sparsities=[0.5, 0.8]))
    scores, total = gt.magnitude(levels[0].model), levels[0].masks.total
    for level, sparsity in zip(levels[1:], (0.5, 0.8), strict=True):
        assert level.masks == gt.prune(scores, to_sparsity=sparsity)
        assert level.masks.alive == total - int(sparsity * total)


def test_controls_keep_what_they_should_and_change_what_they_should(make_autoencoder):
    [*_, level] = gt.imp(make_autoencoder, Recorder(), steps=6, rewind_step=2, rounds=3, fraction=0.4)
    shuffled = gt.random_mask_control(level, seed=1)
    assert shuffled.masks.counts() == level.masks.counts()
    assert shuffled.masks != level.masks
    assert all(torch.equal(shuffled.weights[n], t) for n, t in level.ticket.weights.items())
    redrawn = gt.redrawn_weights_control(level, make_autoencoder)
    assert redrawn.masks == level.masks
    assert (shuffled.origin["rewind_step"], redrawn.origin["rewind_step"]) == (2, 0)
    assert not torch.equal(redrawn.weights["encoder.0.weight"], level.ticket.weights["encoder.0.weight"])


def forgetful(model, masks, start_step, end_step):
    """Trains, and holds nothing."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(start_step, end_step):
        optimizer.zero_grad()
        (model(IMAGES) - IMAGES).square().mean().backward()
        optimizer.step()


def test_every_search_notices_a_training_that_holds_nothing(make_autoencoder):
    score = lambda model, masks: gt.magnitude(model, include=tuple(masks))  # noqa: E731
    model = make_autoencoder()
    found = gt.Ticket(gt.prune(gt.magnitude(model), fraction=0.5), model)
    for search in (
        gt.imp(make_autoencoder, forgetful, steps=4, rounds=1, fraction=0.5),
        gt.one_shot(make_autoencoder, forgetful, steps=4, sparsities=[0.5]),
        gt.at_init(make_autoencoder, forgetful, steps=4, sparsities=[0.5], score=score, with_dense=False),
        gt.transferred(make_autoencoder, forgetful, steps=4, tickets=[found], carry={"decoder": "decoder"}),
    ):
        with pytest.raises(gt.MaskError, match=r"train\(model, masks, 0, 4\) left .* has [0-9]+ pruned.*masks\.hold"):
            list(search)


def test_a_control_that_draws_the_same_weights_is_refused(make_autoencoder):
    def make(seed=0):
        torch.manual_seed(seed)
        return make_autoencoder()

    for rewind_step in (0, 2):
        [*_, level] = gt.imp(make, Recorder(), steps=4, rewind_step=rewind_step, rounds=2)
        with pytest.raises(gt.PruneError, match=r"re-drawn control: make_model\(\) drew the very weights.*seed=1"):
            gt.redrawn_weights_control(level, make)
        redrawn = gt.redrawn_weights_control(level, lambda: make(seed=1))
        assert torch.equal(redrawn.weights["encoder.0.weight"], make(seed=1).encoder[0].weight)
    alone = gt.Level(level.index, level.masks, level.model, gt.Ticket(level.masks, make()))  # as read from files
    with pytest.raises(gt.PruneError, match="re-drawn control"):
        gt.redrawn_weights_control(alone, make)


def test_a_part_that_is_not_drawn_anew_is_told(make_autoencoder):
    pretrained = make_autoencoder().encoder.state_dict()

    def make():
        model = make_autoencoder()
        model.encoder.load_state_dict(pretrained)
        return model

    [*_, level] = gt.imp(make, Recorder(), steps=4, rounds=1)
    with pytest.warns(UserWarning, match=r"2 of 4 weights are not drawn anew, 'encoder\.0\.weight' first"):
        gt.redrawn_weights_control(level, make)


def test_a_fresh_component_is_fresh(make_autoencoder):
    def make():
        torch.manual_seed(0)
        return make_autoencoder()

    search = gt.imp(make, Recorder(), steps=4, rounds=2, components=["encoder"], others="fresh")
    with pytest.raises(gt.PruneError, match="others=fresh: make_model"):
        list(search)


def test_a_factory_that_seeds_itself_leaves_the_callers_generator_alone(make_autoencoder):
    def make():
        torch.manual_seed(5)
        return make_autoencoder()

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    search = gt.imp(make, Recorder(), steps=4, rounds=1)
    assert torch.equal(torch.rand(3), expected)
    [*_, level] = search
    torch.manual_seed(1)
    gt.redrawn_weights_control(level, lambda: (torch.manual_seed(6), make_autoencoder())[1])
    assert torch.equal(torch.rand(3), expected)


def test_resuming_one_shot_goes_on_with_the_next_sparsity(make_autoencoder):
    whole = list(gt.one_shot(make_autoencoder, Recorder(), steps=4, sparsities=[0.3, 0.6]))
    rest = gt.one_shot(make_autoencoder, Recorder(), steps=4, sparsities=[0.3, 0.6], dense=whole[0], done=1)
    [last] = rest
    assert (last.index, last.masks) == (2, whole[2].masks)


def test_a_cut_component_is_refused_before_training(make_autoencoder):
    train = Recorder()
    inputs = {"encoder": IMAGES[:2], "decoder": torch.zeros(2, 3)}
    with pytest.raises(gt.Disconnected, match=r"'(encoder|decoder)'"):
        list(gt.imp(make_autoencoder, train, steps=3, rounds=1, fraction=0.99, example_inputs=inputs))
    assert len(train.calls) == 1


def test_without_inputs_an_empty_layer_is_warned_of(make_autoencoder):
    with pytest.warns(UserWarning, match="nothing is left of"):
        list(gt.imp(make_autoencoder, Recorder(), steps=3, rounds=1, fraction=0.99))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fraction": 0.0}, "fraction=0.0"),
        ({"fraction": 1.5}, "fraction=1.5"),
        ({"fraction": float("nan")}, "fraction=nan"),
        ({"fraction": "abc"}, "fraction='abc' is out of range: a number above 0 and below 1"),
        ({"rounds": 1.5}, "rounds=1.5: a whole number"),
        ({"steps": "5"}, "steps='5': a whole number"),
        ({"rewind_step": 5}, "rewind_step=5"),
        ({"rounds": -1}, "rounds=-1"),
        ({"others": "old"}, "others='old'"),
        ({"retrain": "never"}, "retrain='never'"),
        ({"components": ["head"]}, "no component 'head': the model has encoder, decoder"),
    ],
)
def test_wrong_arguments_are_refused_at_once(make_autoencoder, wrong, message):
    arguments = {"steps": 5, "rounds": 1, **wrong}
    with pytest.raises(gt.GenticketsError, match=message.replace("(", r"\(")):
        gt.imp(make_autoencoder, Recorder(), **arguments)


@pytest.mark.parametrize(
    ("search", "wrong", "message"),
    [
        (gt.imp, {"rounds": 1, "after": 0}, "after=0: a level of a search"),
        (gt.one_shot, {"sparsities": [0.5], "dense": "runs/a"}, "dense='runs/a': a level of a search"),
        (gt.one_shot, {"sparsities": [0.5], "done": None}, "done=None: a whole number"),
        (gt.at_init, {"sparsities": [0.5], "score": gt.magnitude, "dense": 1}, "dense=1: a level of a search"),
        (gt.at_init, {"sparsities": [0.5], "score": gt.magnitude, "done": -1}, "done=-1: a whole number"),
        (gt.transferred, {"tickets": [], "carry": {"encoder": "encoder"}, "dense": 1}, "dense=1: a level of a search"),
        (gt.transferred, {"tickets": [], "carry": {"encoder": "encoder"}, "done": 0.5}, "done=0.5: a whole number"),
    ],
)
def test_what_no_search_can_go_on_from_is_refused_at_once(make_autoencoder, search, wrong, message):
    train = Recorder()
    with pytest.raises(gt.PruneError, match=message):
        search(make_autoencoder, train, steps=5, **wrong)
    assert not train.calls


def test_the_three_line_use_of_the_readme(make_gan, tmp_path):
    gan = make_gan()
    early = gt.Ticket(gt.Masks.dense(gan), gan)
    first = gan.generator[0].weight.detach().clone()
    opt_g = torch.optim.Adam(gan.generator.parameters())
    opt_d = torch.optim.Adam(gan.discriminator.parameters())
    for net, optimizer in ((gan.generator, opt_g), (gan.discriminator, opt_d)):
        net(torch.randn(2, 5, 1, 1) if net is gan.generator else torch.randn(2, 1, 8, 8)).sum().backward()
        optimizer.step()

    masks = gt.Masks.dense(gan)
    masks = gt.prune(gt.magnitude(gan), fraction=0.2, within=masks)
    gt.Ticket(masks, weights=early).save(tmp_path / "face.ticket")
    gan = gt.Ticket.load(tmp_path / "face.ticket").install(gan)
    assert torch.equal(gan.generator[0].weight, first * masks["generator.0.weight"])
    with masks.hold(gan, opt_g, opt_d):
        for _ in range(3):
            fake = gan.generator(torch.randn(4, 5, 1, 1))
            opt_d.zero_grad()
            gan.discriminator(fake.detach()).mean().backward()
            opt_d.step()
            opt_g.zero_grad()
            (-gan.discriminator(fake).mean()).backward()
            opt_g.step()
            masks.audit(gan)
    assert masks.sparsity == pytest.approx(0.2, abs=1e-2)
