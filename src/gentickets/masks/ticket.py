"""A ticket: masks, the weights to start from, and where they come from. It is a file (`ticket_file`), it can be signed
(`signing`), and its rounds are linked (`lineage`)."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX

from gentickets.errors import MaskError, TicketError
from gentickets.files import read_file, writing
from gentickets.masks.examples import WHOLE
from gentickets.masks.lineage import check_lineage, continued, rounds_of
from gentickets.masks.names import (
    A_MODEL_IS,
    Model,
    as_names,
    component_of,
    is_in,
    joined,
    named_by,
    named_state,
    unwrap,
)
from gentickets.masks.signing import Signature, check_signature, signed, signer_of
from gentickets.masks.ticket_file import BROKEN, FORMAT, Content, fingerprint_of, read, written
from gentickets.masks.value import M, Masks
from gentickets.memory import as_bits
from gentickets.notebook import short, shown

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["FORMAT", "Ticket"]

_WRAPPERS = re.compile(r"\b(module|_orig_mod|_forward_module)\.")


class Ticket:
    """Masks, the weights to start from, and their origin.

    `weights`: a model, another ticket, or a state dictionary, as it was at the rewind step; all parameters and
    buffers of the model that the ticket is for, pruned weights included. None: a ticket of masks alone, which is
    installed into whatever weights a model has. `origin`: anything that JSON can hold (recipe, seed, step, versions,
    data fingerprint, lineage of rounds).

    A ticket copies the weights when it is made, and a state dictionary does not: `model.state_dict()` is a view of what
    training then changes. Early weights are kept by a ticket made at that step, `early = Ticket(masks, model)`, and
    given on as `Ticket(later_masks, early)`. Of a state dictionary whose every pruned weight is smaller than every
    kept one it is warned: they are the weights that the masks were made from, and hardly the early ones.

    Raises `TicketError` where the weights do not cover the masks, JSON cannot hold the origin, or a linked `lineage` in
    it does not hold together, or ends at other masks (see `gentickets.masks.lineage`).
    """

    def __init__(
        self,
        masks: Masks,
        weights: Model | Ticket | Mapping[str, Tensor] | None = None,
        origin: Mapping[str, Any] | None = None,
    ):
        if not isinstance(masks, Masks):
            raise TicketError(f"a ticket is made of Masks, and not of a {type(masks).__name__}: Masks(...) makes them")
        if not isinstance(origin, Mapping | None):
            raise TicketError(f"origin={origin!r}: a dict that JSON can hold")
        state = _state_of(weights)
        if empty := [name for name, tensor in state.items() if tensor.is_meta]:
            raise TicketError(f"weights[{empty[0]!r}] is on the meta device and has no values: masks alone need none")
        _check_covered(masks, state)
        if hasattr(weights, "_metadata") and _decided_by(masks, state):  # as `state_dict` makes them
            warnings.warn(
                "these are the weights that the masks were made from: every pruned one is smaller than every kept one. "
                "A state dictionary is a view of what training changes; keep the early ones by Ticket(masks, model)",
                stacklevel=2,
            )
        self.masks = masks
        self.weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
        self.origin: dict[str, Any] = dict(origin or {})
        self.signature: Signature | None = None
        self._origin_json()
        check_lineage(rounds_of(self.origin), masks)

    def __repr__(self) -> str:
        told = short(", ".join(sorted(self.origin)), 80) or "nothing"
        return f"Ticket({self.masks!r}, {len(self.weights)} weights, origin tells {told})"

    def _repr_html_(self) -> str:
        return self.masks._repr_html_() + shown(
            f"{len(self.weights):,} weights to start from; its origin:",
            ("fact", "value"),
            sorted(self.origin.items()),
        )

    def install(self, model: M) -> M:
        """Rewinds `model` to the ticket's weights, applies the masks, and returns it.

        Raises `TicketError` that names the first tensor that differs, with both shapes, whose values the model's dtype
        cannot hold, or that is on the meta device and can hold no values; or two that differ and are one tensor in the
        model. The model is then as it was.
        """
        state = named_state(model)
        if empty := [name for name, tensor in state.items() if tensor.is_meta]:
            raise TicketError(
                f"{empty[0]!r} is on the meta device and can hold no values: model.to_empty(device='cpu') first"
            )
        # A tensor that two layers share has one name in `state`; a state dictionary gives it both.
        places = unwrap(model).state_dict(keep_vars=True) | state
        try:
            for name in state if self.weights else ():
                ours = f"{name!r} is {tuple(state[name].shape)} in the model"
                if name not in self.weights:
                    raise MaskError(f"{ours} and absent from the ticket")
                if self.weights[name].shape != state[name].shape:
                    raise MaskError(f"{ours} and {tuple(self.weights[name].shape)} in the ticket")
                _check_holds(name, self.weights[name], state[name].dtype)
            for name, tensor in self.weights.items():
                if name not in places:
                    raise MaskError(f"the model has no {name!r}, which is {tuple(tensor.shape)} in the ticket")
            self.masks.check_fits(model)
        except MaskError as error:
            raise TicketError(f"the ticket is for another architecture: {error}") from None
        _check_one_a_place(self.weights, places)
        with torch.no_grad():
            for name, tensor in self.weights.items():
                places[name].copy_(tensor)
        return self.masks.apply_(model)

    def transfer(
        self,
        model: Model,
        components: Mapping[str, str],
        with_weights: bool = True,
        exclude: Iterable[str] | str = (),
    ) -> Ticket:
        """A ticket for `model`, from the components of this one (Kalibhat et al. 2021, Sec. 4.4).

        `components`: from → to, such as `{"decoder": "generator"}`. Each mask of such a component goes to the weight
        of the same name in the other; with `with_weights` its weights and buffers go along, and everything else is
        `model`'s own. Everything travels but what `exclude` names (the target's names, or patterns of them), such as
        `"*.head.*"` where a head's outputs mean something else in another family. The new ticket starts from step 0;
        its origin says which masks were left behind, and which components.

        `""` is the whole of a ticket or model that is one network, as in `{"": "generator"}`.

        Raises `TicketError` for a component that is missing on either side, for two that go to one, for a tensor of
        another shape (both shapes named: a ticket does not travel between widths), for an entry of `exclude` that fits
        nothing, and where nothing would be carried; and, with weights, for a tensor of a component that the ticket has
        none for, such as a head that is tied there and not here, unless `exclude` names it.
        """
        state = named_state(model)
        weights = {name: tensor.detach().clone() for name, tensor in state.items()}
        masks: dict[str, Tensor] = {}
        left: list[str] = []
        names: dict[str, str] = {}
        _check_pairs(components)
        for source, target in components.items():
            _check_component(source, self.weights or self.masks, "the ticket")
            _check_component(target, state, "the model")
            own = [name for name in {**self.weights, **self.masks.shapes} if is_in(source, name)]
            names |= {name: joined(target, name.removeprefix(source).lstrip(".")) for name in own}
        try:
            stays = set(named_by(exclude, {**dict.fromkeys(names.values()), **state}, "exclude"))
        except MaskError as error:
            raise TicketError(str(error)) from None
        for name, new in names.items():
            if new in stays:
                left += [new] if name in self.masks else []
                continue
            shape = tuple(self.weights[name].shape) if name in self.weights else self.masks.shapes[name]
            if new not in state or tuple(state[new].shape) != shape:
                theirs = tuple(state[new].shape) if new in state else "absent"
                raise TicketError(
                    f"the ticket cannot travel to this model: {name!r} is {shape} in the ticket and "
                    f"{new!r} is {theirs} in the model; both need one architecture and one width, or "
                    f"exclude=({_layer_of(new)!r},) leaves it behind"
                )
            if name in self.masks:
                masks[new] = self.masks[name]
            if with_weights and name in self.weights:
                weights[new] = self.weights[name].clone()
        for target in components.values() if with_weights and self.weights else ():
            lacks = [own for own in state if is_in(target, own) and own not in names.values() and own not in stays]
            if lacks:
                raise TicketError(
                    f"the ticket has no tensor for {lacks[0]!r}, which would stay the model's own: it may be tied to "
                    f"another one where the ticket was made; exclude=({_layer_of(lacks[0])!r},) leaves it to the model"
                )
        if not masks:
            but = f" but what exclude={as_names(exclude)} leaves behind" if left else ""
            raise TicketError(f"nothing to carry: no mask is in {', '.join(components)}{but}")
        gone = [] if WHOLE in components else [name for name in self.masks.components if name not in components]
        left += [f"{component}.*" for component in gone]
        facts = {"components": dict(components), "with_weights": with_weights, "masks": len(masks), "left": left}
        moved = Masks(masks)
        origin = {"from": self.origin, "transfer": facts, "rewind_step": 0}
        if before := rounds_of(self.origin):
            origin["lineage"] = continued(before, moved, transfer=dict(components))
        return Ticket(moved, weights, origin)

    # -- the file -----------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The file as bytes: equal tickets give equal bytes."""
        return b"".join(self._pieces())

    def _pieces(self) -> list[bytes | memoryview]:
        """Raises `TicketError` where the ticket is no longer what was signed."""
        if self.signature is not None and self.signature.of != self.fingerprint:
            raise TicketError("the ticket was changed since it was signed: sign it again, or ticket.signature = None")
        return written(self._content())

    def _content(self) -> Content:
        return Content(self.masks, self.weights, self._origin_json(), self.signature)

    def _origin_json(self) -> str:
        try:
            return json.dumps(self.origin, sort_keys=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise TicketError(f"the origin of a ticket must be what JSON can hold: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, whole or not at all. Raises `TicketError` where that fails."""
        path = Path(path)
        pieces = self._pieces()
        try:
            with writing(path) as file:
                for piece in pieces:
                    file.write(piece)
        except OSError as error:
            raise TicketError(f"cannot write ticket {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ticket:
        """Reads a ticket file. No pickle, no code: safe for a file from a stranger.

        Raises `TicketError`, in one line, for a file that is missing, cut off, changed by as little as one
        bit, or no ticket.
        """
        try:
            raw = read_file(Path(path))
        except OSError as error:
            raise TicketError(f"cannot read ticket {path}: {error.strerror or error}") from None
        content = read(raw, Path(path))
        # From here on the file is what somebody wrote, who need not have been this class.
        try:
            ticket = cls(content.masks, None, json.loads(content.origin))
            _check_covered(content.masks, content.weights)
            ticket.weights = dict(content.weights)  # nobody else's: no need for copies
            ticket.signature = content.signature
            if ticket.signature is not None and ticket.signature.of != ticket.fingerprint:
                raise TicketError(f"it is not what {ticket.signature.signer} signed: it was changed since")
            return ticket
        except BROKEN as error:
            raise TicketError(f"{path} is no ticket: {' '.join(str(error).split())}") from None

    # -- who made it --------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """A SHA-256 over masks, weights and origin: equal for equal tickets, signed or not."""
        return fingerprint_of(self._content())

    def sign(self, key: str | os.PathLike[str] | Ed25519PrivateKey) -> Ticket:
        """Signs all that the ticket holds, in place of a signature that it has; returns it. `save` writes it along.

        `key`: a private key of ed25519, or a file of OpenSSH or PEM that holds one (`gentickets keys NAME` makes it).
        A ticket that is changed afterwards is not saved until it is signed again. Raises `GenticketsError` where the
        key cannot be read, or cryptography is not installed.
        """
        self.signature = signed(self.fingerprint, key)
        return self

    def verify(self, by: str | os.PathLike[str] | Ed25519PublicKey) -> None:
        """Raises `TicketError` unless every bit that the ticket holds was signed with the private half of this key.

        `by`: a public key of ed25519, a file of OpenSSH or PEM that holds one, or its fingerprint, `SHA256:…`. It says
        who signed only as far as you know whose key it is: do not take it from where the ticket came from.
        """
        expected = signer_of(by)
        found = self.signature
        if found is None:
            raise TicketError(
                f"it is not signed, by {expected} or anybody: its signature was taken away, or never made"
            )
        if found.signer != expected:
            raise TicketError(f"it is signed by {found.signer}, and not by {expected}")
        self.check_signature()

    def check_signature(self) -> None:
        """Raises `TicketError` where the signature, if there is one, does not fit what the ticket holds, whoever's."""
        if self.signature is not None and self.signature.of != self.fingerprint:
            raise TicketError(f"it was changed since {self.signature.signer} signed it")
        if self.signature is not None:
            check_signature(self.signature)


def _state_of(weights: Model | Ticket | Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Name → tensor; of a state dictionary without what layers keep beside their tensors (`get_extra_state`)."""
    if isinstance(weights, Ticket):
        return dict(weights.weights)
    if isinstance(weights, nn.Module):
        return named_state(weights)
    if not isinstance(weights, Mapping | None):
        raise TicketError(f"weights are a model or its state: {A_MODEL_IS}; not a {type(weights).__name__}")
    state: dict[str, Any] = dict(weights or {})
    if state and all(isinstance(net, nn.Module) for net in state.values()):
        return named_state(state)
    kept = {name: tensor for name, tensor in state.items() if str(name).rsplit(".", 1)[-1] != _EXTRA_STATE_KEY_SUFFIX}
    for name, tensor in kept.items():
        if not isinstance(tensor, Tensor):
            raise TicketError(
                f"weights[{name!r}] is a {type(tensor).__name__} and no tensor: give a model or its weights"
            )
    return kept


def _decided_by(masks: Masks, weights: Mapping[str, Tensor]) -> bool:
    """Whether magnitude decides about each of the masks: no pruned weight is larger than one that is kept."""
    some = False
    for name, mask in masks.items():
        size = weights[name].detach().abs().cpu()
        dead, alive = size[~mask], size[mask]
        if len(dead) and len(alive):
            some = True
            if not bool(dead.max() <= alive.min()):
                return False
    return some


def _check_holds(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Raises `TicketError` where a dtype of the model would make something else of a ticket's tensor."""
    kinds = f"{name!r} is {tensor.dtype} in the ticket and {dtype} in the model"
    if not torch.can_cast(tensor.dtype, dtype):
        raise TicketError(f"{kinds}, which cannot hold it")
    if tensor.dtype == dtype or not tensor.numel():
        return
    try:
        lost = _beyond_range(tensor, dtype)
    except (RuntimeError, TypeError) as error:  # torch has no such conversion
        raise TicketError(f"{kinds}, which torch cannot make of it: {error}") from None
    if lost:
        raise TicketError(f"{name!r} has values beyond the range of {dtype}, which it is in the model")


def _beyond_range(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a number has no nearest one in `dtype`: it is too large, or of a sign that there is none of."""
    if dtype.is_floating_point or dtype.is_complex:
        if tensor.dtype.is_floating_point and _spans(dtype, tensor.dtype):
            return False
        largest = torch.finfo(dtype).max * (1 + torch.finfo(dtype).eps)
        before, after = _real_parts(tensor), _real_parts(tensor.to(dtype))
        turned = (after != 0) & (after.sign() != before.sign())
        return bool((before.isfinite() & (~after.isfinite() | turned | (before.abs() > largest))).any())
    if tensor.dtype == torch.bool:
        return False
    numbers, limits = tensor.numpy(), torch.iinfo(dtype)
    return int(numbers.min()) < limits.min or int(numbers.max()) > limits.max


def _spans(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether a dtype reaches as far as another one of real numbers, to both sides."""
    return torch.finfo(wide).max >= torch.finfo(narrow).max and torch.finfo(wide).min <= torch.finfo(narrow).min


def _real_parts(tensor: Tensor) -> Tensor:
    """All real numbers of a tensor, in float64; of real ones of any kind the imaginary parts too, which are 0."""
    return torch.view_as_real(tensor.to(torch.complex128))


def _check_one_a_place(weights: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    """Raises `TicketError` where two tensors of a ticket that differ would go to one place, as of tied layers."""
    first: dict[Any, str] = {}
    for name, tensor in weights.items():
        place = places[name]
        lies = place.numel() > 0 and place.layout is torch.strided
        where = (place.data_ptr(), place.shape, place.stride()) if lies else id(place)
        other = first.setdefault(where, name)
        if other != name and not torch.equal(as_bits(weights[other]), as_bits(tensor)):
            raise TicketError(
                f"{other!r} and {name!r} differ in the ticket and are one tensor in the model: tie them where the "
                f"ticket is made, or untie the model"
            )


def _layer_of(name: str) -> str:
    """A pattern of all that lies beside a weight in its layer."""
    return f"{name.rpartition('.')[0]}.*" if "." in name else name


def _check_covered(masks: Masks, weights: Mapping[str, Tensor]) -> None:
    """Raises `TicketError` where there are weights, and not of all shapes that the masks have."""
    for name, shape in masks.shapes.items() if weights else ():
        if name not in weights:
            wrapped = next((other for other in weights if _WRAPPERS.sub("", other) == name), None)
            hint = "" if wrapped is None else f"; a wrapper calls it {wrapped!r}: give the model, and not its state"
            raise TicketError(f"the weights lack {name!r}, which the masks cover{hint}")
        found = tuple(weights[name].shape)
        if found != shape:
            raise TicketError(f"{name!r} is {found} in the weights and {shape} in the masks")


def _check_pairs(components: Mapping[str, str]) -> None:
    """Raises `TicketError` for what does not say which component goes where, each to a place of its own."""
    if not isinstance(components, Mapping):
        raise TicketError(
            f"components={components!r}: say which component goes where, such as {{'decoder': 'generator'}}"
        )
    targets = list(components.values())
    if twice := [target for target in targets if targets.count(target) > 1]:
        raise TicketError(f"two components of the ticket would go to {twice[0]!r}: only one of them can be there")
    if len(components) > 1 and WHOLE in (*components, *targets):
        raise TicketError("'' is the whole network, and what goes from it or to it goes alone")


def _check_component(name: str, named: Iterable[str], whose: str) -> None:
    if name == WHOLE:
        return
    known = tuple(dict.fromkeys(component_of(n) for n in named))
    if name not in known:
        raise TicketError(f"{whose} has no component {name!r}: it has {', '.join(known)}")
