"""TIFF: axes, colours, and arrays that are whole."""

import re
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from pixelwise.core.errors import DataError
from pixelwise.data.files.readers import image_info, read_image, read_mask


def save_tiff(path: Path, array: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, array, **({"photometric": "minisblack"} | options))
    return path


def test_unclear_axes_ask_for_their_names(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 12, 9), dtype=np.uint8)
    path = save_tiff(tmp_path / "a.tif", array)
    expected = (
        r"a\.tif: has the shape 5 x 12 x 9 with the axes QYX, whose meaning is unclear\. .*"
        r'axes = "ZYX" in dataset\.toml or --axes ZYX'
    )
    for read in (read_image, read_mask, image_info):
        with pytest.raises(DataError, match=expected):
            read(path)
    np.testing.assert_array_equal(read_image(path, "ZYX"), array[..., None])
    np.testing.assert_array_equal(read_mask(path, "TYX"), array)
    np.testing.assert_array_equal(read_image(path, "CYX"), np.moveaxis(array, 0, -1)[None])
    np.testing.assert_array_equal(read_image(path, "YXC"), array[None])
    np.testing.assert_array_equal(read_image(path, "XYZ"), array.transpose(2, 1, 0)[..., None])
    assert image_info(path, "CYX").channels == 5


def test_unclear_axes_of_size_1_are_clear(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", np.ones((1, 12, 9), np.uint8), metadata={"axes": "QYX"})
    assert read_image(path).shape == (1, 12, 9, 1)


@pytest.mark.parametrize("axes", ["ZY", "ZYXY", "QYX", "zyx", "", "CYXC"])
def test_axes_that_no_array_can_have(axes: str, tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", np.ones((5, 12, 9), np.uint8))
    with pytest.raises(DataError, match=rf'a\.tif: axes = "{axes}" is not valid\. Name Y and X once each'):
        read_image(path, axes)


def test_axes_of_another_number(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", np.ones((5, 12, 9), np.uint8))
    with pytest.raises(DataError, match=r'has 3 dimensions, 5 x 12 x 9 \(axes QYX .* axes = "YX" names 2'):
        read_image(path, "YX")


def test_axes_are_for_tiff_only(tmp_path: Path) -> None:
    Image.new("L", (5, 4)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", "ZYX").shape == (1, 4, 5, 1)


def test_channels_in_two_axes(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (2, 12, 9, 3), dtype=np.uint8)
    path = save_tiff(tmp_path / "a.tif", array, imagej=True, metadata={"axes": "CYXS"}, photometric="rgb")
    np.testing.assert_array_equal(read_image(path)[0], np.concatenate([array[0], array[1]], axis=-1))


def test_first_series_and_full_resolution(tmp_path: Path) -> None:
    large = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(large, subifds=1, tile=(16, 16))
        writer.write(large[::2, ::2], subfiletype=1, tile=(16, 16))
        writer.write(np.zeros((10, 10), np.uint8))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif")[0], large)


def test_pages_written_one_by_one_are_a_stack(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (4, 12, 9), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in array:
            writer.write(page)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), array)


def test_alpha_is_dropped_and_other_samples_are_kept(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (12, 9, 4), dtype=np.uint8)
    array[..., 3] = np.where(array[..., 3] > 99, 255, 0)
    path = tmp_path / "a.tif"
    for extra, channels in (("unassalpha", 3), ("assocalpha", 3), ("unspecified", 4)):
        save_tiff(path, array, photometric="rgb", extrasamples=[extra])
        np.testing.assert_array_equal(read_image(path)[0], array[..., :channels])
        assert image_info(path).channels == channels
    save_tiff(path, array[..., :2], extrasamples=["unassalpha"], planarconfig="contig")
    np.testing.assert_array_equal(read_mask(path)[0], array[..., 0])
    planes = np.moveaxis(array, -1, 0)
    save_tiff(path, planes, photometric="rgb", extrasamples=["unassalpha"], planarconfig="separate", metadata=None)
    np.testing.assert_array_equal(read_image(path)[0], array[..., :3])


def test_white_is_zero(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (12, 9), dtype=np.uint8)
    path = save_tiff(tmp_path / "a.tif", array, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(path)[0, ..., 0], cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    np.testing.assert_array_equal(read_mask(path)[0], array)
    save_tiff(path, array > 99, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(path)[0, ..., 0], array <= 99)
    np.testing.assert_array_equal(read_mask(path)[0], array <= 99)


@pytest.mark.parametrize(("photometric", "samples"), [("separated", 4), ("cielab", 3), ("ycbcr", 3)])
def test_colours_that_are_not_read(photometric: str, samples: int, tmp_path: Path) -> None:
    array = np.ones((16, 16, samples), np.uint8)
    path = save_tiff(tmp_path / "a.tif", array, photometric=photometric, planarconfig="contig")
    with pytest.raises(DataError, match=rf"stores its colours as {photometric.upper()}, which cannot be read"):
        read_image(path)


@pytest.mark.parametrize("metadata", [{"axes": "ZYX"}, {"axes": "TYX"}])
@pytest.mark.parametrize("imagej", [True, False])
def test_stacks_that_lost_pages(metadata: dict[str, str], imagej: bool, tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", np.ones((6, 20, 30), np.uint16), imagej=imagej, metadata=metadata)
    data = path.read_bytes()
    for kept in (0.4, 0.7, 0.95):
        path.write_bytes(data[: int(kept * len(data))])
        with pytest.raises(DataError, match=r"a\.tif: is truncated or damaged: its list of pages is cut short"):
            image_info(path)


def test_imagej_stack_of_one_directory_that_was_cut(tmp_path: Path) -> None:
    description = "ImageJ=1.54f\nimages=6\nslices=6\nloop=false\n"
    page = np.ones((20, 30), np.uint16)
    path = save_tiff(tmp_path / "a.tif", page, description=description, metadata=None)
    with path.open("ab") as handle:
        handle.write(bytes(4 * page.nbytes))
    with pytest.raises(DataError, match="is truncated: ImageJ's header declares more images than the file holds"):
        read_image(path)
    with path.open("ab") as handle:
        handle.write(bytes(page.nbytes))
    assert read_image(path).shape == (6, 20, 30, 1)


def test_segments_outside_the_file(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", np.ones((64, 64), np.uint8), tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        offsets = list(file.pages[0].dataoffsets)
        offsets[5] = path.stat().st_size - 3
        file.pages[0].tags["TileOffsets"].overwrite(offsets)
    with pytest.raises(DataError, match=r"a\.tif: is truncated: some pixels lie beyond the end of the file"):
        read_image(path)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["TileOffsets"].overwrite(offsets[:4])
    with pytest.raises(DataError, match=r"a\.tif: "):
        read_image(path)


def test_tags_whose_values_lie_outside_the_file(tmp_path: Path) -> None:
    # as in a file whose writer puts the values of its tags last
    path = save_tiff(tmp_path / "a.tif", np.ones((3, 24, 16, 16), np.uint8), description="x" * 90, metadata=None)
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].tags["ImageDescription"].offset
    data = bytearray(path.read_bytes())
    data[offset + 8 : offset + 12] = struct.pack("<I", len(data) - 10)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a\.tif: is truncated or damaged: the value of tag 270 is missing"):
        image_info(path)


def test_a_set_of_files_with_one_missing(tmp_path: Path) -> None:
    first, second = tmp_path / "a.ome.tif", tmp_path / "b.ome.tif"
    xml = tifffile.OmeXml()
    xml.addimage("uint8", (2, 16, 16), (2, 1, 1, 16, 16, 1), axes="ZYX")
    ome = xml.tostring().replace(
        '<TiffData IFD="0" PlaneCount="2"/>',
        "".join(
            f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1">'
            f'<UUID FileName="{path.name}">urn:uuid:{z + 1}</UUID></TiffData>'
            for z, path in enumerate((first, second))
        ),
    )
    ome = re.sub(r'UUID="urn:uuid:[^"]*"', 'UUID="urn:uuid:1"', ome, count=1)
    for path in (first, second):
        save_tiff(path, np.full((16, 16), 7, np.uint8), description=ome, metadata=None)
    assert read_image(first).shape == (2, 16, 16, 1)
    second.unlink()
    with pytest.raises(DataError, match="belongs to a set of files, of which another is missing"):
        read_image(first)


def test_a_tiff_without_a_page(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\x00" + bytes(12))
    with pytest.raises(DataError, match=r"a\.tif: is truncated or damaged: it contains no page"):
        read_image(tmp_path / "a.tif")


def test_numbers_of_unknown_or_complex_type(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", np.ones((4, 4), np.complex64))
    with pytest.raises(DataError, match="holds complex64 pixels, but only whole and real numbers can be used"):
        image_info(path)
    save_tiff(path, np.ones((4, 4), np.uint16))
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["BitsPerSample"].overwrite(77)
    with pytest.raises(DataError, match="holds numbers of a type that cannot be read"):
        image_info(path)


@pytest.mark.parametrize("part", ["Image", "Tile"])
def test_more_pixels_than_memory(part: str, tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", np.ones((64, 64), np.uint8), tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        for side in ("Width", "Length"):
            file.pages[0].tags[part + side].overwrite(2**23, dtype="I")
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=r"is too large: its header declares .* GiB of memory"):
            read(path)


def test_a_side_of_zero(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", np.ones((4, 5), np.uint8), metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["ImageLength"].overwrite(0)
    with pytest.raises(DataError, match=r"a\.tif: contains no pixels: its size is 1 x 0 x 5 x 1"):
        image_info(path)
