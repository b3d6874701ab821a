"""Does the code of a component go along with fewer channels?

A copy without some of its channels is made and run on the example, operation by operation beside the whole one. Each
operation is given what the whole network has in the channels that are left, and must make of it what the whole
network's does. Whatever fails reads a number off a module that has to follow (`channels`, `num_heads` …): that is
found by trying; or else the channels that it reads and makes stay. Widths that fall by the same share keep many a sum
right by chance (`channels // heads`): each kind of channels loses a share of its own.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gentickets.channels.cutting import cut, silence
from gentickets.channels.graph import ChannelGraph, Mend, settle
from gentickets.channels.layers import weighs_channels
from gentickets.channels.trace import (
    Node,
    Operation,
    OtherWay,
    Recorder,
    Run,
    Untraceable,
    is_telling,
    mapped,
    parts,
)
from gentickets.masks.examples import Example, tolerance
from gentickets.masks.names import clone

_NAMES, _TOGETHER = 4, 3
"""How many names of numbers are tried in twos and threes."""

_LEAST, _MOST = 2, 6
"""How many choices of channels have to pass: until each has been gone in one of them, as far as it can."""


def try_cuts(graph: ChannelGraph, example: Example, training: Run | None) -> None:
    """Fixes the channels that the code of a component needs to be as many as they are, and finds what it reads off its
    modules that has to follow them (`graph.mends`)."""
    chance = np.random.default_rng(0)
    if training is not None and not _failures(graph, example, training, set()):  # else it is another each time
        graph.training = training
    runs = graph.runs
    passed, tried = 0, set[int]()
    while passed < _MOST:
        gone = _some(graph, chance, tried)
        if not gone or (passed >= _LEAST and gone <= tried):
            return
        small = clone(graph.net)
        burst = _burst(graph, example, small, gone)
        failures: list[_Failure] = []
        for whole in runs if not burst else ():
            failures = _failures(graph, example, whole, gone, small if whole is graph.run else None)
            if failures:
                break
        if not failures and not burst:
            passed, tried = passed + 1, tried | gone
            continue
        passed, tried = 0, set()
        if failures and not _mended(graph, example, whole, gone, failures) and not _give_up(graph, failures):
            _find_the_counted(graph, example, failures[0], gone)
        settle(graph)


def goes_along(graph: ChannelGraph, example: Example, gone: set[int]) -> bool:
    """Whether the code of a component does the same without those very groups, as far as each operation goes. If not,
    what has to follow or to stay is known to the graph from here on."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for whole in graph.runs if gone else ():
            if failures := _failures(graph, example, whole, gone):
                break
        else:
            return True
        if not _mended(graph, example, whole, gone, failures) and not _give_up(graph, failures):
            _find_the_counted(graph, example, failures[0], gone)
        settle(graph)
    return False


def _some(graph: ChannelGraph, chance: np.random.Generator, tried: set[int]) -> set[int]:
    """Some of the groups that may go, so that each node keeps some channel: of those that lie in the same nodes what
    was not tried, or a share of their own, a quarter to three quarters."""
    places = [np.unique(graph.groups(graph.along(node, axis))) for node, axis in graph.axes.items()]
    places += [np.unique(graph.groups(labels)) for labels in (*graph.makes.values(), *graph.reads.values())]
    fixed = graph.fixed
    free = [group for group in np.unique(np.concatenate(places)).tolist() if group not in fixed] if places else []
    holders: dict[int, list[int]] = {}
    left: list[int] = []
    for own in {tuple(place.tolist()) for place in places}:
        for group in own:
            holders.setdefault(group, []).append(len(left))
        left.append(len(own))
    kinds: dict[tuple[int, ...], list[int]] = {}
    for group in free:
        kinds.setdefault(tuple(holders[group]), []).append(group)
    order: list[int] = []
    met: set[Fraction] = set()
    for kind, share in zip(kinds.values(), chance.permutation(len(kinds)).tolist(), strict=True):
        new = [group for group in kind if group not in tried]
        most = len(new) if 0 < len(new) < len(kind) else _share(len(kind), share / max(1, len(kinds) - 1), met)
        order += chance.permutation(new or kind)[:most].tolist()
    gone: set[int] = set()
    for group in order:
        if all(left[place] > 1 for place in holders[group]):
            gone.add(group)
            for place in holders[group]:
                left[place] -= 1
    return gone


def _share(count: int, place: float, met: set[Fraction]) -> int:
    """How many of a kind go: from a quarter to three quarters, by its place from 0 to 1 among all kinds; another share
    than those that were `met`, where there is one."""
    wanted = (0.25 + 0.5 * place) * count
    between = sorted(range(-(-count // 4), 3 * count // 4 + 1), key=lambda many: abs(many - wanted))
    found = next((many for many in between if Fraction(many, count) not in met), max(1, round(wanted)))
    met.add(Fraction(found, count))
    return found


def _burst(graph: ChannelGraph, example: Example, masked: nn.Module, gone: set[int]) -> bool:
    """Whether some operation makes what is not finite of channels that are 0, as pruned ones are in a copy that is
    given, from here on; fixes what it reads then."""
    silence(masked, graph, gone)
    try:
        run = Recorder(masked).record(example)
    except Exception:  # code that asks for numbers
        return False
    for before, after in zip(graph.run.operations, run.operations, strict=False):
        layer = after.call if after.layer is not None else None
        if weighs_channels(layer) or not _all_finite(after.sources):  # type: ignore[arg-type]
            continue  # a norm of a weight has its own guard
        if _all_finite(before.made) and not _all_finite(after.made):
            labels = [graph.labels[node] for node in (*before.sources, *before.made)]
            fixed = [graph.fix(one, f"{before.name} (not finite where a channel is 0)") for one in labels]
            return any(fixed)
    return False


def _all_finite(nodes: Sequence[Node]) -> bool:
    return all(bool(node.value.isfinite().all()) for node in nodes)


class _Failure:
    """An operation that does not do to fewer channels what it does to all: of a run, or code on the way to it."""

    def __init__(self, operation: Operation, within: tuple[str, ...], nodes: Sequence[Node]):
        self.operation, self.within, self.nodes = operation, within, nodes


def _failures(
    graph: ChannelGraph, example: Example, whole: Run, gone: set[int], small: nn.Module | None = None
) -> list[_Failure]:
    """What fails in a copy of a component, one that is given perhaps, without some groups of its channels."""
    small = clone(graph.net) if small is None else small
    cut(small, graph, gone)
    follower = _Follower(small, graph, whole, gone)
    try:
        follower.record(example)
    except OtherWay:
        pass
    except Exception:  # code that asks for what it knew, before it did the next operation
        follower.fails(follower.failed_in)
    return follower.failures


class _Follower(Recorder):
    """Runs a smaller component beside a recorded run of the whole one."""

    def __init__(self, net: nn.Module, graph: ChannelGraph, whole: Run, gone: set[int]):
        super().__init__(net, training=whole is not graph.run)
        self.graph, self.whole, self.gone = graph, whole, gone
        self.failures: list[_Failure] = []
        self._place = 0

    def expected(self, node: Node) -> Tensor:
        """What of the whole network's tensor is left."""
        kept = self.graph.kept(node, self.gone)
        return (
            node.value
            if kept is None
            else node.value.index_select(kept[0], torch.from_numpy(kept[1]).to(node.value.device))
        )

    def _there(self) -> Operation:
        """The operation of the whole run that is next."""
        while self._place < len(self.whole.operations):
            if self.whole.operations[self._place].call is not None:
                return self.whole.operations[self._place]
            self._place += 1  # a note of what was written
        raise OtherWay

    def fails(self, within: tuple[str, ...] | None) -> None:
        """Notes that the operation that is next was not reached, or failed."""
        operations = self.whole.operations
        here = operations[min(self._place, len(operations) - 1)]
        before = operations[self._place - 1].made if self._place else []
        nodes = [*here.made, *here.sources] if within is None else [*before, *here.sources, *here.made]
        self.failures.append(_Failure(here, here.within if within is None else within, nodes))

    def _perform(self, operation: Operation, tensors: Sequence[Tensor], do: Callable[[], Any]) -> Any:
        result, made, error = None, None, None
        try:
            result = do()
            made = [part for part in parts(result) if isinstance(part, Tensor)]
        except Exception as caught:
            error = caught
        if made == [] and not is_telling(operation) and not self._there().overwrites:
            return result  # of a shape, perhaps
        there = self._there()
        if operation.layer != there.layer or (there.layer is None and operation.call != there.call):
            if error is not None:
                raise error
            self.fails(None)
            raise OtherWay
        if made is not None and (there.overwrites or there.tells):
            self._place += 1
            self._write_down(operation, result, [])
            return result
        expected = [self.expected(node) for node in there.made]
        weighs = weighs_channels(self.graph.layer_of(there.made[0]))
        fine = made is not None and len(made) == len(expected) and all(map(_near, made, expected, [weighs] * len(made)))
        if not fine:
            self.fails(None)
        if not fine or weighs:
            place = {node: tensor.clone() for node, tensor in zip(there.made, expected, strict=True)}
            result = mapped(there.result, lambda part: place[part] if isinstance(part, Node) else part)
        self._place += 1
        self._write_down(operation, result, [])
        return result


def _near(found: Tensor, expected: Tensor, shape_alone: bool) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if shape_alone or not expected.numel():
        return True
    if not (expected.is_floating_point() or expected.is_complex()):
        return torch.equal(found, expected)
    scale = max(1.0, float(expected.nan_to_num(0, 0, 0).abs().max()))
    return torch.allclose(found, expected, rtol=0, atol=4 * tolerance(expected.dtype) * scale, equal_nan=True)


# -- what follows -------------------------------------------------------------------------------------------


def _mended(graph: ChannelGraph, example: Example, whole: Run, gone: set[int], failures: Sequence[_Failure]) -> bool:
    """Whether numbers that follow from the channels were found on the modules at work, so that less fails: as few of
    them as will do, by the same name on every module."""
    for depth in range(1, 4):
        found: dict[tuple[str, str], Mend] = {}
        for failure in failures:
            if len(failure.within) >= depth:
                for mend in _candidates(graph, failure, failure.within[-depth], gone):
                    found.setdefault((mend.module, mend.attribute), mend)
        names = list(dict.fromkeys(attribute for _, attribute in found))
        for count in range(1, _TOGETHER + 1):
            for chosen in itertools.combinations(names if count == 1 else names[:_NAMES], count):
                before = len(graph.mends)
                graph.mends += [mend for (_, attribute), mend in found.items() if attribute in chosen]
                if _less(_failures(graph, example, whole, gone), failures):
                    return True
                del graph.mends[before:]
    return False


def _less(now: Sequence[_Failure], before: Sequence[_Failure]) -> bool:
    """Whether what fails now is less: fewer operations, and none of those that did not before them."""
    left, were = {id(failure.operation) for failure in now}, {id(failure.operation) for failure in before}
    return left < were or (not left & were)


def _candidates(graph: ChannelGraph, failure: _Failure, module: str, gone: set[int]) -> list[Mend]:
    """Whole numbers on a module that are as many as the whole network has along an axis where channels go."""
    there = vars(graph.net.get_submodule(module))
    known = {(mend.module, mend.attribute) for mend in graph.mends}
    found = []
    for node in failure.nodes:
        kept = graph.kept(node, gone)
        if kept is None:
            continue
        size = node.value.shape[kept[0]]
        for key, value in there.items():
            if type(value) is int and value == size and (module, key) not in known:
                known.add((module, key))
                found.append(Mend(module, key, node, kept[0]))
    return found


def _give_up(graph: ChannelGraph, failures: Sequence[_Failure]) -> bool:
    """Fixes what the operations that fail read and make, or what is next to them; whether there was any such thing."""
    for near in (False, True):
        changed = False
        for failure in failures:
            operation = failure.operation
            for node in failure.nodes if near else (*operation.sources, *operation.made):
                changed |= graph.fix(graph.labels[node], _counted(operation))
        if changed:
            return True
    return False


def _counted(operation: Operation) -> str:
    return f"{operation.name} (its code says how many channels)"


def _find_the_counted(graph: ChannelGraph, example: Example, failure: _Failure, gone: set[int]) -> None:
    """Fixes the channels of those layers without some of which a run fails, wherever it does: without half of them, or
    those that are `gone`. Where it fails only without what goes of several layers, all that stays. Raises `Untraceable`
    where that is nothing."""
    for half in (True, False):
        fixed, changed = graph.fixed, False
        for labels in list(graph.makes.values()):
            groups = np.unique(graph.groups(labels))
            free = [group for group in groups.tolist() if group not in fixed]
            some = set(free[: max(1, len(groups) // 2)] if half else gone & set(free)) if len(groups) > 1 else set()
            if some and any(_failures(graph, example, whole, some) for whole in graph.runs):
                changed |= graph.fix(labels, _counted(failure.operation))
        if changed:
            return
    if not graph.fix(np.array(sorted(gone)), _counted(failure.operation)):
        raise Untraceable(
            f"component {graph.component!r} cannot be traced at {failure.operation.line} (it fails with fewer channels "
            f"of whatever layer): its masks still hold (masks.hold), but it cannot be shrunk or pruned by groups; "
            f"leave it out of the example inputs"
        )
