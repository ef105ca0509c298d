"""Shared fixtures: small data sets that a network can learn, made anew for each test."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REAL_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def _blobs(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """H x W ids of a few separate bright discs, 0 between them."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    ids = np.zeros(size, np.uint16)
    for number in range(1, 7):
        y, x, radius = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(3, 7)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        if not ids[disc].any():
            ids[disc] = number
    ids[0, 0] = 0
    return ids


def _mask(ids: np.ndarray, kind: str) -> np.ndarray:
    if kind == "binary":
        return np.where(ids > 0, 255, 0).astype(np.uint8)
    classes = np.where(ids == 0, 0, 1 + ids % 2).astype(np.uint8)  # background and two kinds of disc
    if kind == "index":
        return classes
    if kind == "color":
        return np.array([[0, 0, 0], [200, 30, 30], [30, 30, 200]], np.uint8)[classes]
    return ids


def write_pair(folder: Path, stem: str, seed: int, size: tuple[int, int], kind: str, channels: int) -> None:
    """Write images/STEM.png and masks/STEM.png below `folder`."""
    rng = np.random.default_rng(seed)
    ids = _blobs(rng, size)
    level = 60 + 70 * (ids > 0) + 50 * (ids % 2)
    image = np.clip(level[..., None] + rng.normal(0, 12, (*size, channels)), 0, 255).astype(np.uint8)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0] if channels == 1 else image).save(folder / "images" / f"{stem}.png")
    Image.fromarray(_mask(ids, kind)).save(folder / "masks" / f"{stem}.png")


@pytest.fixture
def make_dataset() -> Callable[..., Path]:
    """A function that writes a data set and gives its folder."""

    def make(
        root: Path,
        count: int = 6,
        size: tuple[int, int] = (48, 40),
        kind: str = "binary",
        split: Sequence[str] | None = None,
        channels: int = 1,
        seed: int = 0,
    ) -> Path:
        for place, folder in enumerate([root / name for name in split] if split else [root]):
            for number in range(count):
                write_pair(folder, f"img{place}{number:02d}", 1000 * seed + 100 * place + number, size, kind, channels)
        return root

    return make


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What was found out about data sets is kept in a folder of the tests, also by the commands that they start."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("cache"))
        for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):  # of Linux and of Windows
            patch.setenv(name, folder)
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, beside the project."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"the real data sets are not at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder that predictions go to."""
    return tmp_path / "out"


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, it leaves no room for masks in memory."""
    return lambda: monkeypatch.setattr("pixelwise.prediction.reading.Reader._room_for_masks", lambda *_: 0)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows are not run together."""
    monkeypatch.setattr("pixelwise.prediction.items.BATCH_PIXELS", 1)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every export takes too long, and every image is worth one."""
    from pixelwise import api
    from pixelwise.engines import exported
    from pixelwise.prediction import predictor

    def export(*arguments: object) -> bytes:
        for _ in range(10**8):  # not for ever, so that a test fails whose export is not given up
            pass
        return b""

    monkeypatch.setattr(exported, "export", export)
    monkeypatch.setattr(exported, "EXPORT_SECONDS", 0.2)
    monkeypatch.setattr(api, "WORTH_PREPARING", 0)
    monkeypatch.setattr(predictor, "_EXPORT_PIXELS", 0)
