"""The geometry of any torch module, found by experiment: nothing that the module says about itself is trusted.

Shapes: N images, C channels, H x W pixels, K classes.

The experiments, in this order, for rows and for columns:

1. unit: which sizes does the module take and return?
2. reach: many rows of a long, narrow image are changed, first near one end, then near the other. If the output changes
   at the far end, every output depends on every input.
3. stride: the smallest shift of the image that shifts the output by as much, away from the borders.
4. halo and margin: one row is changed at a time, at every phase of the stride: by NaN, which survives every sum and
   maximum, and by finite amounts, which pass where NaN is replaced or compared.
5. the statement itself: tiles of random images are compared with the whole images.

A change is any difference at all: images of one size take the same path through the network, so that an output that
does not depend on the change keeps its bits. Images go in one by one, which needs little memory, and because a module
may mix the images of a batch.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pixelwise.core.errors import ModelError, SettingError
from pixelwise.geometry.modes import evaluation_mode
from pixelwise.geometry.reach import Geometry, round_up

SMALLEST_WINDOW = 64  # pixels; with fewer a local network cannot be told from a global one
LARGEST_UNIT = 256  # pixels; modules that take only multiples of more are refused
SQUARE = 256  # pixels; the side of the largest square image that is compared with its tiles
ROWS, COLUMNS = 0, 1  # the axes
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative to the largest output value; the best first
COARSE_TOLERANCE = 1e-2  # for modules that compute in half precision, whatever they are given

_Form = tuple[nn.Module, torch.dtype, torch.device]  # a module in eval mode, and what its images must be


@dataclass(frozen=True)
class Probed:
    """What experiments revealed about a module.

    >>> probe_geometry(nn.MaxPool2d(3, stride=1, padding=1), channels=1)
    Probed(geometry=Geometry(stride=1, halo=1, margin=1, exact=True, reason=''), any_size=True)
    """

    geometry: Geometry  # if it is not exact, halo and margin are what was seen before, not a recommended overlap
    any_size: bool  # False: pad images to multiples of the stride and crop the output


def probe_geometry(network: nn.Module, channels: int, largest: int = 1024) -> Probed:
    """Find by experiment how far a module sees, and verify that its tiles reproduce the whole image.

    The module is left as it is: a copy in float64 on the CPU is probed, or in float32 if it does not run in float64. A
    module that cannot be copied is probed itself; afterwards its modes, its buffers and torch's random state are
    restored.

    Args:
        network: takes N x channels x H x W, returns N x K x H x W of the same H and W.
        channels: C.
        largest: length of the longest image that is probed for reach, in pixels, at least 64; networks that see up to
            half as far on one side are recognised as local.

    Returns:
        The geometry: halo and margin are the larger of rows and columns, the stride is their least common multiple; not
        exact, with the reason, if an experiment failed. And whether the module takes images of any size.

    Raises:
        ModelError: the module raises an error for every size, or does not return N x K x H x W.
        SettingError: `largest` is too small.

    >>> probe_geometry(nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2)), channels=3)
    Probed(geometry=Geometry(stride=2, halo=1, margin=0, exact=True, reason=''), any_size=False)
    """
    if largest < SMALLEST_WINDOW:
        raise SettingError(f"largest: must be at least {SMALLEST_WINDOW} pixels, not {largest}.")
    with _left_as_it_is(network) as forms:
        steps = _steps(network, largest // 4)
        subject = _first_that_runs(forms, channels, [step for step in steps if step <= LARGEST_UNIT])
        try:
            return _prove(subject, steps, largest)
        except _RaisedError as error:
            return _not_exact(subject, subject.unit, 0, f"it could not be probed: {error}")


class _RaisedError(ModelError):
    """The module raised an exception of its own."""


@dataclass
class _Subject:
    """A module under experiment."""

    network: nn.Module
    channels: int
    dtype: torch.dtype
    device: torch.device
    unit: int = 1  # it takes sides that are multiples of this
    narrow: int = 1  # a small side that it takes, a multiple of the unit
    takes_nan: bool = True
    precision: torch.dtype = torch.float64  # of its output
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __call__(self, images: Tensor) -> Tensor:
        """N x K x H x W output in float64 on the CPU.

        Raises:
            ModelError: it returned something else. _RaisedError: it raised an error.
        """
        name, given = type(self.network).__name__, _size_text(images)
        try:
            # A copy, since the module may write into its argument.
            outputs = self.network(images.clone(memory_format=torch.contiguous_format))
        except Exception as error:
            raise _RaisedError(f"{name}: raised {type(error).__name__} for images of {given}: {error}") from error
        if not isinstance(outputs, Tensor):
            returned = f"a {type(outputs).__name__}"
        elif outputs.ndim != 4 or (len(outputs), *outputs.shape[2:]) != (len(images), *images.shape[2:]):
            returned = _size_text(outputs)
        else:
            self.precision = outputs.dtype if outputs.is_floating_point() else self.dtype
            return outputs.to("cpu", torch.float64)
        raise ModelError(
            f"{name}: was given images of {given} and returned {returned}: a network must return N x K x H x W "
            f"logits of the image's height and width; pad inside it, or resize its output."
        )

    def along(self, axis: int, images: Tensor) -> Tensor:
        """The output for images whose rows run along `axis`, turned back to rows."""
        return self(images) if axis == ROWS else self(images.mT).mT

    def takes(self, height: int, width: int) -> bool:
        """Whether it runs on images of that size and returns the same size."""
        try:
            self(self.draw(1, height, width))
        except ModelError:
            return False
        return True

    def draw(self, count: int, height: int, width: int) -> Tensor:
        """Images of normal noise."""
        shape = (count, self.channels, height, width)
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.device, self.dtype)

    def amounts(self, height: int, width: int) -> list[Tensor]:
        """Changes to add to pixels, each 1 x C x height x width: NaN, and amounts of 0.01 to 1000 of both signs."""
        signs = self.draw(1, height, width).sign()
        exponents = torch.rand(signs.shape, generator=self.generator, dtype=torch.float64).to(signs) * 5 - 2
        finite = signs * 10**exponents
        return [torch.full_like(finite, math.nan), finite] if self.takes_nan else [finite]

    def differs(self, first: Tensor, second: Tensor) -> bool:
        """Whether two outputs differ by more than rounding."""
        return _difference(first, second) > TOLERANCES.get(self.precision, COARSE_TOLERANCE)


def _size_text(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _changes(after: Tensor, before: Tensor) -> Tensor:
    """Where two outputs differ in any bit; NaN equals NaN."""
    return (after != before) & ~(after.isnan() & before.isnan())


def _difference(first: Tensor, second: Tensor) -> float:
    """The largest difference, relative to the largest value; infinite between a number and NaN or infinity."""
    changes = _changes(first, second)
    if not changes.any():
        return 0.0
    apart = (first - second)[changes].abs()
    values = torch.cat([first[first.isfinite()], second[second.isfinite()]]).abs()
    return float(apart.max() / values.max()) if apart.isfinite().all() else math.inf


# The module, left as it is


@contextmanager
def _left_as_it_is(network: nn.Module) -> Iterator[list[_Form]]:
    """Forms of the module to try, best first; afterwards the module and the random state are as before.

    Not in inference mode: a module that stores a result could no longer be trained with it.
    """
    tensors = [*network.parameters(), *network.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    generators = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(generators), torch.no_grad(), torch.autocast(device.type, enabled=False):
        try:
            copies = [copy.deepcopy(network).to("cpu", dtype).eval() for dtype in TOLERANCES]
        except Exception:  # it holds something that cannot be copied, such as a lock
            copies = []
        if copies:
            yield [(own, dtype, torch.device("cpu")) for own, dtype in zip(copies, TOLERANCES, strict=True)]
            return
        dtypes = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
        with evaluation_mode(network), _buffers_put_back(network):
            yield [(network, dtypes[0] if dtypes else torch.float32, device)]


@contextmanager
def _buffers_put_back(network: nn.Module) -> Iterator[None]:
    """Restore the buffers of every module, including those that `forward` replaced."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for module, name, buffer, values in buffers:
            setattr(module, name, buffer)
            buffer.copy_(values)


def _first_that_runs(forms: Sequence[_Form], channels: int, units: Sequence[int]) -> _Subject:
    """The module in the best form that runs, and what it takes.

    Raises:
        ModelError: no form runs; the error is that of the last one.
    """
    refusal = None
    for network, dtype, device in forms:
        subject = _Subject(network, channels, dtype, device)
        try:
            subject.unit = _find_unit(subject, units)
        except ModelError as error:
            refusal = error
            continue
        subject.narrow = _find_narrow(subject)
        subject.takes_nan = _takes_nan(subject)
        return subject
    assert refusal is not None
    raise refusal


# Which images it takes


def _steps(network: nn.Module, limit: int) -> list[int]:
    """Numbers of pixels that may be its unit or its stride, in order.

    Powers of two, three times those, and their products with the strides and factors of its modules.
    """
    steps = {odd * 2**power for odd in (1, 3) for power in range(9)}
    for module in network.modules():
        for factor in _factors(module):
            steps |= {step * factor for step in steps if step * factor <= limit}
    return sorted(step for step in steps if step <= limit)


def _factors(module: nn.Module) -> set[int]:
    """The factors by which it reduces or enlarges an image, under the names that torch uses for them."""
    factors: set[int] = set()
    for name in ("stride", "scale_factor", "upscale_factor", "downscale_factor"):
        value = vars(module).get(name)
        values = value if isinstance(value, tuple | list) else (value,)
        factors |= {int(one) for one in values if isinstance(one, int | float) and one > 1 and one == int(one)}
    return factors


def _sides(unit: int) -> tuple[int, int]:
    """Height and width of an image: two multiples of the unit without another common factor."""
    times = max(3, -(-48 // unit) | 1) if unit <= 64 else 1
    return unit * times, unit * (times + 2)


def _find_unit(subject: _Subject, units: Sequence[int]) -> int:
    """The smallest unit whose multiples the module takes and returns.

    Raises:
        ModelError: there is none; the error is that of the largest unit.
    """
    refusal = None
    for unit in units:
        try:
            for height, width in (_sides(unit), _sides(unit)[::-1]):
                subject(subject.draw(1, height, width))
        except ModelError as error:
            refusal = error
        else:
            return unit
    assert refusal is not None
    raise refusal


def _find_narrow(subject: _Subject) -> int:
    """A small side that the module takes beside a long one; modules that mirror the border refuse tiny sides."""
    height, width = _sides(subject.unit)
    for side in (4, 8, 16, 32):
        narrow = round_up(side, subject.unit)
        if subject.takes(height, narrow) and subject.takes(narrow, width):
            return narrow
    return width


def _takes_nan(subject: _Subject) -> bool:
    """Whether it accepts NaN; some modules check their images."""
    try:
        subject(torch.full_like(subject.draw(1, *_sides(subject.unit)), math.nan))
    except _RaisedError:
        return False
    return True


# The experiments


def _prove(subject: _Subject, steps: Sequence[int], largest: int) -> Probed:
    """Run one experiment after another, until one of them shows that the module is not exact."""
    images = subject.draw(1, *_sides(subject.unit))
    if _changes(subject(images), subject(images)).any():
        reason = "two runs in eval mode on the same image give different outputs: it draws random numbers"
        return _not_exact(subject, subject.unit, 0, reason)
    reaches = []
    for axis in (ROWS, COLUMNS):
        length = _window(subject, axis, largest)
        reaches.append(_reach(subject, axis, length))
        if reaches[axis] == length:
            reason = f"an output pixel depends on every input pixel, across an image of {length} pixels"
            return _not_exact(subject, subject.unit, length, reason)
    reach = max(reaches)
    shifts = [step for step in steps if step % subject.unit == 0] or [subject.unit]
    strides = [_stride(subject, axis, shifts, reaches[axis]) for axis in (ROWS, COLUMNS)]
    if None in strides:
        reason = (
            f"the output depends on the place in the image: no shift of the image by {shifts[0]} to {shifts[-1]} "
            f"pixels shifts the output by as much"
        )
        return _not_exact(subject, subject.unit, reach, reason)
    stride = math.lcm(*(stride for stride in strides if stride))
    halo, margin = map(max, zip(*(_figures(subject, axis, stride, reach) for axis in (ROWS, COLUMNS)), strict=True))
    return _check_tiles(subject, Geometry(stride, halo, margin))


def _not_exact(subject: _Subject, stride: int, reach: int, reason: str) -> Probed:
    return Probed(Geometry(stride, reach, reach, exact=False, reason=reason), any_size=subject.unit == 1)


def _window(subject: _Subject, axis: int, largest: int) -> int:
    """Length of the longest image that the module takes, halving from `largest`.

    Raises:
        ModelError: it does not take any of at least 64 pixels.
    """
    length = round_up(largest - subject.unit + 1, subject.unit)
    while True:
        try:
            subject.along(axis, subject.draw(1, length, subject.narrow))
        except ModelError:
            if length < 2 * max(SMALLEST_WINDOW, subject.unit):
                raise
            length = round_up(length // 2, subject.unit)
        else:
            return length


def _changed_rows(subject: _Subject, axis: int, length: int, narrow: int, changes: Sequence[slice]) -> Tensor:
    """Which rows of the output change with the rows of each slice: number of slices x length, bool.

    All pixels of the rows are changed, to include every phase of the other axis.
    """
    image, amounts = subject.draw(1, length, narrow), subject.amounts(length, narrow)
    before = subject.along(axis, image)
    changed = torch.zeros(len(changes), length, dtype=torch.bool)
    for rows, change in zip(changed, changes, strict=True):
        for amount in amounts:
            probe = image.clone()
            probe[..., change, :] += amount[..., change, :]
            rows |= _changes(subject.along(axis, probe), before).any(dim=3).any(dim=1)[0]
    return changed


def _reach(subject: _Subject, axis: int, length: int) -> int:
    """How far a change is seen, too short by less than a stride; `length` if it is seen everywhere.

    The changed rows are a quarter of the image, to include every phase of every stride. They lie near one end, so that
    an image shows a reach of more than half its length.
    """
    edge, block = length // 16, length // 4
    near_start, near_end = slice(edge, edge + block), slice(length - edge - block, length - edge)
    down, up = _changed_rows(subject, axis, length, subject.narrow, [near_start, near_end])
    if down[-1] or up[0]:
        return length
    below, above = down.nonzero()[:, 0] - (near_start.stop - 1), near_end.start - up.nonzero()[:, 0]
    return int(max([0, *below.tolist(), *above.tolist()]))


def _stride(subject: _Subject, axis: int, shifts: Sequence[int], reach: int) -> int | None:
    """The smallest shift of the image that shifts the output."""
    return next((shift for shift in shifts if _shift_holds(subject, axis, shift, reach)), None)


def _shift_holds(subject: _Subject, axis: int, shift: int, reach: int) -> bool:
    """Whether shifting the image shifts the output by as much, out of sight of the borders.

    A module may give the same value everywhere, with all ReLUs off, so the edges of what NaN reaches must move, too.
    """
    border = reach + 2 * shift
    length = round_up(2 * border + 8 * shift, shift)
    images = subject.draw(3, length + shift, subject.narrow)
    images[1, :, length // 2 - reach] = math.nan
    images[2, :, length // 2 + reach] = math.nan
    for image in images[: 3 if subject.takes_nan else 1, None]:
        there = subject.along(axis, image[..., :length, :])[..., shift + border : length - border, :]
        shifted = subject.along(axis, image[..., shift:, :])[..., border : length - border - shift, :]
        if subject.differs(there, shifted):
            return False
    return True


def _figures(subject: _Subject, axis: int, stride: int, reach: int) -> tuple[int, int]:
    """Halo and margin, from what each row of one period changes by itself."""
    start = round_up(reach + stride, stride)  # the reach may be too short by almost a stride
    pixels = range(start, start + stride)
    changes = [slice(pixel, pixel + 1) for pixel in pixels]
    changed = _changed_rows(subject, axis, 2 * start + stride, round_up(subject.narrow, stride), changes)
    halo = margin = 0
    for pixel, rows in zip(pixels, changed, strict=True):
        outputs = rows.nonzero()[:, 0]
        tiles = outputs // stride * stride  # the first row of the smallest tile on the grid that owns each
        outside = torch.maximum(tiles - pixel, pixel - (tiles + stride - 1))
        halo = max([halo, *(outputs - pixel).abs().tolist()])
        margin = max([margin, *outside.tolist()])
    return halo, margin


# The statement itself


def _check_tiles(subject: _Subject, geometry: Geometry) -> Probed:
    """Compare tiles with whole images, on the stride grid and off it."""
    stride, margin = geometry.stride, geometry.margin
    tile = round_up(subject.narrow, stride)
    long = round_up(2 * margin, tile) + 3 * tile  # a tile in the middle has its whole margin
    square = min(long, max(SQUARE // tile, 2) * tile)
    for size in ((long, tile), (tile, long), (square, square)):
        difference = _seam(subject, geometry, tile, *size)
        if difference > 0:
            reason = (
                f"tiles of {tile} pixels with a margin of {margin} on a grid of {stride} differ from the whole "
                f"image of {size[0]} x {size[1]} by {difference:.1e} of its largest value"
            )
            return _not_exact(subject, stride, max(geometry.halo, margin), reason)
    return Probed(geometry, any_size=_takes_any_size(subject, geometry, tile, long))


def _takes_any_size(subject: _Subject, geometry: Geometry, tile: int, long: int) -> bool:
    """Whether the module takes images off the stride grid, down to a single pixel, and they equal their tiles."""
    stride = geometry.stride
    if stride == 1:
        return True
    rests = {1, stride // 2, stride - 1}
    sizes = [(1, 1)] + [size for rest in rests for size in ((long + rest, tile + rest), (tile + rest, long + rest))]
    try:
        return all(_seam(subject, geometry, tile, *size) == 0 for size in sizes)
    except ModelError:
        return False


def _seam(subject: _Subject, geometry: Geometry, tile: int, height: int, width: int) -> float:
    """The largest relative difference between some tiles of a random image and the whole; 0 if it is only rounding."""
    image = subject.draw(1, height, width)
    whole = subject(image)
    margin = round_up(geometry.margin, geometry.stride)
    rows, columns = _spans(height, tile, margin), _spans(width, tile, margin)
    worst = 0.0
    for index, (own_rows, read_rows, inner_rows) in enumerate(rows):
        across = index % len(columns)
        for own, read, inner in (columns[place] for place in sorted({across, len(columns) - 1 - across})):
            tiled = subject(image[..., read_rows, read])[..., inner_rows, inner]
            if subject.differs(tiled, whole[..., own_rows, own]):
                worst = max(worst, _difference(tiled, whole[..., own_rows, own]))
    return worst


def _spans(size: int, tile: int, margin: int) -> list[tuple[slice, slice, slice]]:
    """The first, a middle and the last two tiles of an axis: what they own, what they read, the former within it."""
    last = (size - 1) // tile
    spans = []
    for index in sorted({0, last // 2, max(last - 1, 0), last}):
        start, end = index * tile, min((index + 1) * tile, size)
        first = max(start - margin, 0)
        spans.append((slice(start, end), slice(first, end + margin), slice(start - first, end - first)))
    return spans
