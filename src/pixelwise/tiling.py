"""Tiles of an image: which part each owns and which part it reads. Pure whole numbers, no torch.

Tiles sit on the network's stride grid and read their margin, so that what the network gives on a tile's owned
part is what it gives there on the whole image. A read ends where the image ends: the borders of the image are
the network's own borders.
"""

from dataclasses import dataclass

from pixelwise.errors import DataError, SettingError
from pixelwise.geometry import round_up

Slices = tuple[slice, slice]


@dataclass(frozen=True)
class Tile:
    """One tile in pixels of the image; every interval holds its start and not its end.

    Take `image[..., *tile.read]` through the network, then put `logits[..., *tile.inside]` at `tile.owned`.

    >>> tile = plan_tiles(100, 100, tile=32, stride=16, margin=10)[5]
    >>> tile.owned, tile.inside
    ((slice(32, 64, None), slice(32, 64, None)), (slice(16, 48, None), slice(16, 48, None)))
    """

    y0: int  # the owned part: rows y0 to y1, columns x0 to x1
    y1: int
    x0: int
    x1: int
    read_y0: int  # the read window: the owned part and its margin, within the image
    read_y1: int
    read_x0: int
    read_x1: int

    @property
    def owned(self) -> Slices:
        """Rows and columns of the image that this tile, and no other, writes."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    @property
    def read(self) -> Slices:
        """Rows and columns of the image that the network needs for it."""
        return slice(self.read_y0, self.read_y1), slice(self.read_x0, self.read_x1)

    @property
    def inside(self) -> Slices:
        """Rows and columns of the owned part within the read window."""
        return (
            slice(self.y0 - self.read_y0, self.y1 - self.read_y0),
            slice(self.x0 - self.read_x0, self.x1 - self.read_x0),
        )


def plan_tiles(height: int, width: int, tile: int, stride: int, margin: int) -> list[Tile]:
    """Cut an image into tiles, row by row; the last of a row or column may be smaller.

    Args:
        height: pixels, at least 1.
        width: pixels, at least 1.
        tile: side of the owned part in pixels, a multiple of `stride`; the margin is not counted.
        stride: the network's stride in pixels (`Geometry.stride`).
        margin: pixels that a tile needs on each side (`Geometry.margin`); rounded up to the stride grid here.

    Returns:
        Tiles that own every pixel exactly once. Owned parts and read windows start on multiples of `stride`,
        and end on one or with the image.

    Raises:
        DataError: the image has no pixel.
        SettingError: the tile is no multiple of the stride.

    >>> tiles = plan_tiles(5, 70, tile=32, stride=16, margin=10)
    >>> [(tile.x0, tile.x1, tile.read_x0, tile.read_x1) for tile in tiles]
    [(0, 32, 0, 48), (32, 64, 16, 70), (64, 70, 48, 70)]
    """
    if height < 1 or width < 1:
        raise DataError(f"an image of {height} x {width} pixels has nothing to predict.")
    if tile < 1 or tile % stride:
        below, above = tile // stride * stride, round_up(tile, stride)
        choices = f"{below} or {above}" if below > 0 else f"{stride}, the smallest"
        raise SettingError(f"tile: {tile} is no multiple of the network's stride {stride}; take {choices}.")
    rows = _spans(height, tile, round_up(margin, stride))
    columns = _spans(width, tile, round_up(margin, stride))
    return [
        Tile(y0, y1, x0, x1, read_y0, read_y1, read_x0, read_x1)
        for y0, y1, read_y0, read_y1 in rows
        for x0, x1, read_x0, read_x1 in columns
    ]


def _spans(size: int, tile: int, margin: int) -> list[tuple[int, int, int, int]]:
    """Owned start and end, read start and end, of each tile along one axis."""
    spans = []
    for start in range(0, size, tile):
        end = min(start + tile, size)
        spans.append((start, end, max(start - margin, 0), min(start + tile + margin, size)))
    return spans
