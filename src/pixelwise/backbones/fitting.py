"""Which tensors of a file belong to an encoder: by name, by name without what other programs put before it, by order.

A file fits if it holds at least `ENOUGH` of the encoder's tensors, none of them in another shape, and if the encoder
uses at least as much of what the file holds in the same parts: a deeper network of the same family has all the tensors
of a shallower one, and yet is another.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

ENOUGH = 0.9  # of the tensors
SHOWN = 4  # names of a list that a message shows
PREFIXES = (
    *("teacher", "student", "module", "model", "state_dict", "model_state_dict", "encoder", "backbone"),
    *("encoder_q", "base_encoder", "network", "net"),
)
"""What may stand before an encoder's names, alone or in a row: of DataParallel, Lightning, MoCo, DINO, ..."""

COUNTER = "num_batches_tracked"  # of a batch norm, which older files lack and nothing depends on


@dataclass(frozen=True)
class Outline:
    """An encoder's tensors, by the names that its published files have."""

    own: dict[str, str]  # published name -> name in the encoder, without the layers that it leaves out
    shapes: dict[str, torch.Size]  # of the encoder's, by published name
    complete: dict[str, torch.Size]  # of the whole network but its classifier, in its order
    stems: frozenset[str]  # published names of weights whose shape depends on the channels of the image
    foldable: frozenset[str]  # those of them that can be folded to other channels


@dataclass(frozen=True)
class Fit:
    """What of a file belongs to an encoder, and what does not."""

    values: dict[str, Tensor] = field(default_factory=dict)  # by published name
    how: str = "by name"
    missing: tuple[str, ...] = ()  # published names that the file lacks
    misshapen: tuple[str, ...] = ()  # "name (64 x 3 instead of 32 x 3)"
    left: tuple[str, ...] = ()  # the file's names that the encoder does not have
    foreign: tuple[str, ...] = ()  # those of them that stand in parts that the encoder has
    folded: bool = False  # the first layer, to other channels

    @property
    def taken(self) -> int:
        """How many tensors fit, without the counters of batch norms."""
        return sum(is_counted(name) for name in self.values)

    @property
    def wanted(self) -> int:
        """How many tensors the encoder has."""
        return self.taken + len(self.missing) + len(self.misshapen)


def fit(tensors: Mapping[str, Tensor], outline: Outline) -> Fit:
    """The best way to read a file's tensors as an encoder's.

    >>> outline = Outline({"a.weight": "x.a.weight"}, {"a.weight": torch.Size([2])}, {"a.weight": torch.Size([2])},
    ...     frozenset(), frozenset())
    >>> found = fit({"module.a.weight": torch.zeros(2), "module.fc.weight": torch.ones(1)}, outline)
    >>> list(found.values), found.how, found.left
    (['a.weight'], 'by name, below module.', ('module.fc.weight',))
    """
    fits = [_by_name(tensors, prefix, outline) for prefix in _prefixes(tensors)]
    best = max(fits, key=lambda found: found.taken)  # the first of equal ones
    if best.taken >= ENOUGH * best.wanted:
        return best
    return _by_order(tensors, outline) or best


def fault(found: Fit, share: float = ENOUGH) -> str:
    """Why a file does not fit; "" if it does. `share` of the encoder's tensors must be there."""
    unfoldable = [text for text in found.misshapen if text.startswith(UNFOLDABLE)]
    if unfoldable and len(found.misshapen) == len(unfoldable):
        return unfoldable[0]
    if found.misshapen or found.taken < share * found.wanted:
        told = f"{found.taken} of its {found.wanted} tensors are in the file"
        for title, names in (
            ("missing", found.missing),
            ("of another shape", found.misshapen),
            ("in the file alone", found.left),
        ):
            told += f"; {len(names)} {title}: {shortened(names)}" if names else ""
        return told
    if len(found.foreign) > (1 - ENOUGH) * (found.taken + len(found.foreign)):
        return (
            f"{len(found.foreign)} more tensors stand in the same parts of the file, as of a deeper network or of "
            f"another normalisation: {shortened(found.foreign)}"
        )
    return _bad_values(found)


def fold(weight: Tensor, channels: int) -> Tensor:
    """First-layer weights for images of other channels: O x C x k x k to O x channels x k x k.

    An image whose channels are all equal is seen as the original network sees a grey one, since each filter keeps its
    sum: the channels that both have keep their weights, further ones get the mean of all, and all are scaled alike.
    With fewer channels than there were, each gets the mean.

    >>> fold(torch.tensor([[[[1.0]], [[2.0]], [[3.0]]]]), 4).flatten().tolist()
    [0.75, 1.5, 2.25, 1.5]
    >>> fold(torch.tensor([[[[1.0]], [[2.0]], [[3.0]]]]), 1).flatten().tolist()
    [6.0]
    """
    before = weight.shape[1]
    if channels == before:
        return weight
    mean = weight.mean(dim=1, keepdim=True)
    kept = weight if channels > before else weight[:, :0]
    added = mean.expand(-1, channels - kept.shape[1], -1, -1)
    return torch.cat([kept, added], dim=1) * (before / channels)


def shortened(names: tuple[str, ...]) -> str:
    """The first few names.

    >>> shortened(("a", "b", "c", "d", "e"))
    'a, b, c, d, ...'
    """
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])


def is_counted(name: str) -> bool:
    """Whether a tensor counts; a batch norm's counter does not."""
    return not name.endswith(COUNTER)


def flat(name: str) -> str:
    """A name without the difference between stages.0 and stages_0, which timm's extractors make."""
    return name.replace(".", "_")


UNFOLDABLE = "the first layer "


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """What stands before names and may be taken off: nothing, "module.", "teacher.backbone.", ...

    The teacher of two networks comes before its student, being the one that is used.
    """
    found = {""}
    for name in tensors:
        parts = name.split(".")
        for count, part in enumerate(parts[:-1], start=1):
            if part not in PREFIXES:
                break
            found.add("".join(f"{part}." for part in parts[:count]))
    return sorted(found, key=lambda prefix: ("student" in prefix, prefix.count("."), prefix))


def _by_name(tensors: Mapping[str, Tensor], prefix: str, outline: Outline) -> Fit:
    inside = {flat(name.removeprefix(prefix)): name for name in tensors if name.startswith(prefix)}
    pairs = {name: inside[flat(name)] for name in outline.own if flat(name) in inside}
    known, own = {flat(name) for name in outline.complete}, {flat(name) for name in outline.own}
    left = [name for key, name in inside.items() if key not in known and is_counted(name)]
    parts = {name.removeprefix(prefix).partition(".")[0] for name in pairs.values()}
    foreign = [name for name in left if name.removeprefix(prefix).partition(".")[0] in parts]
    foreign += [inside[key] for name in pairs if (key := _statistics(name)) in inside and key not in own]
    how = f"by name, below {prefix}" if prefix else "by name"
    taken = set(pairs.values())
    others = [name for name in tensors if name not in taken and is_counted(name)]
    return _compared({name: tensors[other] for name, other in pairs.items()}, how, outline, (others, foreign))


def _statistics(name: str) -> str:
    """The flat name that the mean of a batch norm has beside its weight; without it the norm is another one."""
    return flat(f"{name.removesuffix('weight')}running_mean") if name.endswith(".weight") else ""


def _by_order(tensors: Mapping[str, Tensor], outline: Outline) -> Fit | None:
    """The file's tensors as the network's, one after the other; None unless all of their kinds and shapes agree."""
    wanted = [name for name in outline.complete if is_counted(name)]
    given = [name for name in tensors if is_counted(name)]
    if len(given) < len(wanted):
        return None
    pairs = dict(zip(wanted, given, strict=False))
    for name, other in pairs.items():
        if name.rpartition(".")[2] != other.rpartition(".")[2]:  # a weight is no bias, though as long
            return None
        if not _alike(tensors[other].shape, outline.complete[name], name in outline.stems):
            return None
    values = {name: tensors[pairs[name]] for name in outline.own if name in pairs}
    taken = {pairs[name] for name in values}
    return _compared(values, "by order", outline, ([name for name in given if name not in taken], []))


def _alike(shape: torch.Size, wanted: torch.Size, is_stem: bool) -> bool:
    """Whether shapes agree, those of first layers but for the channels of the image."""
    if not is_stem:
        return shape == wanted
    return len(shape) == len(wanted) and (*shape[:1], *shape[2:]) == (*wanted[:1], *wanted[2:])


def _compared(values: dict[str, Tensor], how: str, outline: Outline, others: tuple[list[str], list[str]]) -> Fit:
    """A fit of tensors whose names agree: their shapes are compared, first layers folded."""
    fitting: dict[str, Tensor] = {}
    misshapen, folded = [], False
    for name, value in values.items():
        wanted = outline.shapes[name]
        if value.shape == wanted:
            fitting[name] = value
        elif name in outline.foldable and value.is_floating_point() and _alike(value.shape, wanted, is_stem=True):
            fitting[name], folded = fold(value.float(), wanted[1]), True
        elif is_counted(name):
            cause = f"{name} ({_by(value.shape)} instead of {_by(wanted)})"
            is_stem = name in outline.stems - outline.foldable
            misshapen.append(f"{UNFOLDABLE}{cause} cannot be folded to other channels" if is_stem else cause)
    missing = [name for name in outline.own if name not in values and is_counted(name)]
    left, foreign = others
    return Fit(fitting, how, tuple(missing), tuple(misshapen), tuple(left), tuple(foreign), folded)


def _by(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "one value"


def _bad_values(found: Fit) -> str:
    """What is wrong with the numbers themselves: kinds that are no weights, values that are not finite."""
    for name, value in _counted(found):
        if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
            return f"{name} holds {str(value.dtype).removeprefix('torch.')} values of another form than plain numbers"
    wrong = tuple(name for name, value in _counted(found) if not value.float().isfinite().all())
    return f"{len(wrong)} of its tensors hold values that are not finite: {shortened(wrong)}" if wrong else ""


def _counted(found: Fit) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in found.values.items() if is_counted(name))
