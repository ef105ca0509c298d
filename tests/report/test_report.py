import base64
import io
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from pixelwise import metrics
from pixelwise.core.classes import IGNORE, ClassMap
from pixelwise.core.errors import OutputError
from pixelwise.data.pixels import pictures
from pixelwise.evaluation.measure import Case
from pixelwise.report import Report, figures, html, write_report
from pixelwise.task import Figure, Record
from pixelwise.tasks.segment import Labels, Segmentation
from trainings import three_classes

CLASSES = ClassMap(("background", "cell", "<script>alert(1)</script>"))
FIGURE = Figure("mean_iou", "mean IoU")
HISTORY = [
    {"epoch": 1, "step": 10, "loss": 1.0, "mean_iou": 0.3},
    {"epoch": 2, "step": 20, "loss": 0.7, "mean_iou": 0.52},
    {"epoch": 3, "loss": float("nan")},
]


class Page(HTMLParser):
    """Collects what the tests look at: tags with attributes, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@dataclass(frozen=True)
class Seen:
    """An image with its truth, and what was predicted."""

    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    score: float

    def case(self, classes: ClassMap = CLASSES) -> Case:
        """It, drawn as segmentation draws it."""
        config = three_classes(data={"classes": list(classes.names), "colors": list(classes.colors)})
        record = Record(self.name, self.image, Labels(self.truth, None))
        return Case(self.name, self.score, Segmentation().draw(record, self.prediction, config))


def make_case(name: str, wrong: int, score: float, shape: tuple[int, int] = (24, 32)) -> Seen:
    random = np.random.default_rng(wrong)
    truth = np.zeros(shape, dtype=np.uint16)
    truth[4:12, 4:12] = 1
    truth[-4:] = IGNORE
    prediction = np.where(truth == IGNORE, 0, truth).astype(np.uint8)
    prediction[0, :wrong] = 1
    return Seen(name, random.integers(0, 256, (*shape, 3), dtype=np.uint8), truth, prediction, score)


def scores(confusion: np.ndarray, classes: ClassMap = CLASSES) -> dict[str, Any]:
    """What an evaluation tells of a confusion matrix."""
    summary = metrics.summary(confusion, classes.names)
    return {"task": "segment", "metric": "mean_iou", "value": summary["mean_iou"], **summary}


def measured(cases: list[Seen], classes: ClassMap = CLASSES) -> dict[str, Any]:
    count = len(classes)
    matrix = sum(metrics.confusion_matrix(case.truth, case.prediction, count) for case in cases)
    return {**scores(np.asarray(matrix), classes), "images": len(cases)}


def written(folder: Path, classes: ClassMap = CLASSES, **changes: Any) -> tuple[str, Page]:
    seen = [
        make_case("fine.png", 1, 0.9),
        make_case("bad & worse.png", 9, 0.2),
        make_case("fair.png", 4, 0.6),
    ]
    values: dict[str, Any] = {
        "title": "cells: val",
        "figure": FIGURE,
        "metrics": measured(seen),
        "colors": classes.colors,
        "cases": seen,
        "history": HISTORY,
        "facts": {"model": "unet", "command": "pixelwise evaluate <run>"},
        **changes,
    }
    values["cases"] = [case.case(classes) for case in values["cases"]]
    path = folder / "report.html"
    write_report(path, Report(**values))
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def picture_of(uri: str | None) -> np.ndarray:
    assert uri is not None
    assert uri.startswith("data:image/png;base64,")
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))


def test_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    text, page = written(tmp_path)
    assert not page.all("script")
    assert not page.all("link")
    assert "://" not in text
    assert "url(" not in text
    for attributes in page.all("img") + page.all("source"):
        assert str(attributes.get("src") or attributes.get("srcset")).startswith("data:image/png;base64,")
    targets = {attributes["href"] for attributes in page.all("a")}
    assert targets == {"#classes", "#images", "#confusion", "#training", "#facts"}
    assert targets == {f"#{attributes['id']}" for attributes in page.all("section") if "id" in attributes}


def test_names_are_escaped(tmp_path: Path) -> None:
    text, page = written(tmp_path, title="<b>title</b>")
    assert "<script" not in text
    assert "<b>" not in text
    assert "<run>" not in text
    for words in ("<script>alert(1)</script>", "bad & worse.png", "pixelwise evaluate <run>", "<b>title</b>"):
        assert words in page.text


def test_page_can_be_read_aloud(tmp_path: Path) -> None:
    _, page = written(tmp_path)
    assert page.all("html") == [{"lang": "en"}]
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    assert {"Image, fine.png", "Truth, bad & worse.png"} <= {attributes["alt"] for attributes in page.all("img")}


def test_scores_are_shown_and_absent_classes_said(tmp_path: Path) -> None:
    _, page = written(tmp_path)
    # 3 images of 20 x 32 counted pixels: 192 of cell found, 14 background pixels taken for cell.
    assert f"{(1714 / 1728 + 192 / 206) / 2:.3f} mean IoU" in page.text
    assert f"Pixel accuracy {1906 / 1920:.3f}" in page.text
    assert f"cell {192 / 206:.3f} {2 * 192 / 398:.3f} {192 / 206:.3f} 1.000 192" in page.text
    assert "<script>alert(1)</script> absent – – – 0" in page.text  # noqa: RUF001
    assert "pooled over pixels" in page.text
    assert "Images 3" in page.text


def test_confusion_shows_shares_of_the_truth_and_the_largest_mistake(tmp_path: Path) -> None:
    confusion = np.array([[900, 90, 10], [0, 1, 1], [0, 0, 0]])
    _, page = written(tmp_path, metrics=scores(confusion))
    assert "background 90 9 1 cell · 50 50" in page.text
    assert "background cell 90 9% background <script>alert(1)</script> 10 1% cell" in page.text
    strengths = re.findall(r"--strength: ([\d.]+)", str(page.tags))
    assert [float(value) for value in strengths] == pytest.approx(
        [0.9**0.6, 0.09**0.6, 0.01**0.6, 0.5**0.6, 0.5**0.6], abs=0.001
    )


def test_nothing_wrong_is_said(tmp_path: Path) -> None:
    _, page = written(tmp_path, metrics=scores(np.diag([5, 3, 2])))
    assert "No counted pixel is wrong." in page.text


def test_a_matrix_too_large_to_read_is_left_out(tmp_path: Path) -> None:
    classes = ClassMap(tuple(f"class {index}" for index in range(40)))
    case = make_case("a.png", 3, 0.5)
    _, page = written(tmp_path, classes=classes, metrics=measured([case], classes), cases=[case])
    assert {"class": "matrix"} not in page.all("table")
    assert "class 0 class 1 3" in page.text


def test_boundaries_and_objects_are_shown_where_measured(tmp_path: Path) -> None:
    counts = {0.5: (3, 1, 0), 0.75: (0, 0, 0)}
    extra = {"boundary_f": {"1": 0.5, "2": 0.625}, "instances": metrics.instance_scores(counts)}
    _, page = written(tmp_path, metrics={**measured([make_case("a", 1, 0.9)]), **extra})
    assert "Boundary F, 1 px 0.500" in page.text
    assert "2 px 0.625" in page.text
    assert "Object AP at IoU 0.50 0.750" in page.text
    assert "0.50 0.750 0.857 0.750 1.000" in page.text
    assert "0.75 – – – –" in page.text  # noqa: RUF001


def test_cases_stand_worst_first(tmp_path: Path) -> None:
    cases = [make_case(f"{score}.png", 2, score) for score in (0.5, 0.9, 0.1)]
    text, page = written(tmp_path, cases=[make_case("void.png", 0, float("nan")), *cases])
    assert [page.text.count(word) for word in ("0.100 worst", "0.500 middle", "0.900 best")] == [1, 1, 1]
    positions = [text.index(f"<h3>{name}.png") for name in ("0.1", "0.5", "0.9", "void")]
    assert positions == sorted(positions)


@pytest.mark.parametrize(("count", "tags"), [(1, set()), (2, {"worst", "best"})])
def test_few_cases_have_no_middle(tmp_path: Path, count: int, tags: set[str]) -> None:
    cases = [make_case(f"{index}.png", 2, index / 10) for index in range(count)]
    _, page = written(tmp_path, cases=cases)
    found = {str(attributes["class"]).removeprefix("tag ") for attributes in page.all("span") if "class" in attributes}
    assert found & {"worst", "middle", "best"} == tags


def test_pictures_of_a_case(tmp_path: Path) -> None:
    case = make_case("a.png", 9, 0.2)
    _, page = written(tmp_path, cases=[case], history=[])
    image, truth, prediction, errors = (picture_of(attributes["src"]) for attributes in page.all("img"))
    np.testing.assert_array_equal(image, case.image)
    np.testing.assert_array_equal(truth, pictures.colorize(case.truth, CLASSES))
    np.testing.assert_array_equal(prediction, pictures.colorize(case.prediction, CLASSES))
    np.testing.assert_array_equal(errors, pictures.error_picture(case.image, case.truth, case.prediction))
    assert f"Errors: {9 / 640:.1%} of pixels" in page.text


@pytest.mark.parametrize(("count", "side"), [(1, 480), (24, 240)])
def test_large_pictures_shrink(tmp_path: Path, count: int, side: int) -> None:
    cases = [make_case(f"{index}.png", 5, 0.5, shape=(300, 600)) for index in range(count)]
    text, page = written(tmp_path, cases=cases, history=[])
    assert picture_of(page.all("img")[0]["src"]).shape == (side // 2, side, 3)
    assert len(text) < 6_000_000


def test_huge_pictures_are_thinned_out_first() -> None:
    case = make_case("a.png", 5, 0.5, shape=(40, 9000)).case()
    assert [picture.shape for picture in case.pictures.values()] == [(10, 2250, 3)] * 4
    assert [picture_of(view["source"]).shape for view in html._pictures(case, limit=480)] == [(2, 480, 3)] * 4


def test_a_task_without_classes_has_a_report_too(tmp_path: Path) -> None:
    figure = Figure("error", "error of boxes", rises=False)
    history = [{"epoch": 1, "loss": 0.5, "error": 0.3}, {"epoch": 2, "loss": 0.4, "error": 0.7}]
    told = {"task": "boxes", "metric": "error", "value": 0.25, "error": 0.25, "images": 2}
    _, page = written(tmp_path, figure=figure, metrics=told, colors=(), history=history)
    assert {attributes["href"] for attributes in page.all("a")} == {"#images", "#training", "#facts"}
    assert "0.250 error of boxes" in page.text
    assert "the best error of boxes in validation, 0.300, came in epoch 1." in page.text
    assert "own error of boxes." in page.text
    assert "IoU" not in page.text


def test_training_is_told_as_far_as_it_is_known(tmp_path: Path) -> None:
    _, page = written(tmp_path)
    assert "3 epochs; the best mean IoU in validation, 0.520, came in epoch 2." in page.text
    assert len(page.all("source")) == 2
    _, page = written(tmp_path, history=[{"epoch": 1, "loss": 0.5}])
    assert "1 epoch." in page.text
    assert len(page.all("source")) == 1
    _, page = written(tmp_path, history=[], facts={}, cases=[])
    assert {attributes["href"] for attributes in page.all("a")} == {"#classes", "#confusion"}


def test_global_state_of_matplotlib_stays() -> None:
    before = dict(mpl.rcParams)
    assert set(figures.curves(HISTORY, FIGURE)) == {"Loss", "Mean IoU in validation"}
    assert dict(mpl.rcParams) == before
    assert "pyplot" not in Path(figures.__file__).read_text(encoding="utf-8")


def test_curves_for_a_dark_page_differ_and_are_transparent() -> None:
    light, dark = figures.curves(HISTORY, FIGURE)["Loss"], figures.curves(HISTORY, FIGURE, dark=True)["Loss"]
    assert light != dark
    for png in (light, dark):
        picture = np.array(Image.open(io.BytesIO(png)))
        assert picture.shape == (403, 676, 4)
        assert picture[0, 0, 3] == 0
        assert picture[..., 3].max() == 255
    assert figures.curves([{"epoch": 1}], FIGURE) == {}


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"report\.html: cannot be written"):
        written(tmp_path / "file")


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "0"), (0.001, "<1"), (0.256, "26"), (0.995, "99"), (0.9999, "99"), (1.0, "100")],
)
def test_shares_never_look_like_none_or_all(share: float, shown: str) -> None:
    assert html._percent(share) == shown
