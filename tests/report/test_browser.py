"""Pages as headless Chromium shows them, opened from disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdslab.report.index_page import write_index
from sdslab.report.run_page import write_report
from sdslab.run_schema import read_run
from tests.report.run_folders import HOSTILE, Run, browse, copy_run, make_run, make_study

pytestmark = pytest.mark.slow
LOOK = "document.querySelector('#view').dataset.shown"
STATE = "document.querySelector('#view').dataset.state"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def shot(name: str) -> list[str]:
    return ["shot", name, "canvas"]


def picture(path: Path) -> np.ndarray:
    """[h, w, 3] in [0, 1], white where the frame and the mark of the focus are."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    framed = np.ones_like(pixels)
    framed[8:-8, 8:-8] = pixels[8:-8, 8:-8]
    return framed


def covered(pixels: np.ndarray) -> np.ndarray:
    """Where it is not the white background."""
    return pixels.min(-1) < 0.93


def middle(pixels: np.ndarray) -> np.ndarray:
    """The square in the middle."""
    height, width = pixels.shape[:2]
    left = (width - height) // 2
    return pixels[:, left : left + height]


@pytest.fixture(scope="module")
def session(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One visit: turned with the mouse and with keys, zoomed, switched with keys and buttons."""
    folder = tmp_path_factory.mktemp("shots")
    steps = [
        ["evaluate", STATE], ["evaluate", LOOK], shot("front.png"),
        ["drag", 150, 0], shot("dragged.png"),
        ["key", "0"], shot("reset.png"),
        ["key", "ArrowLeft"], ["key", "ArrowLeft"], ["key", "ArrowUp"], shot("keys.png"),
        ["key", "Home"], ["key", "+"], ["key", "+"], shot("near.png"),
        ["key", "0"], ["key", "2"], ["evaluate", LOOK], shot("stage1.png"),
        ["click", "[data-look=original]"], ["evaluate", LOOK], shot("original.png"),
        ["evaluate", "document.querySelector('[data-look=original]').getAttribute('aria-pressed')"],
        ["key", "Tab"], ["evaluate", "document.activeElement.textContent"],
        ["evaluate", "getComputedStyle(document.activeElement).outlineStyle"],
        ["evaluate", "document.querySelector('[role=status]').textContent"],
    ]  # fmt: skip
    return folder, browse(write_report(finished.folder), steps, folder, still=True)


def test_it_opens_from_disk_without_an_error_or_a_request(session: tuple[Path, dict[str, Any]]):
    _, told = session
    assert told["errors"] == []
    assert told["requests"] == []
    assert told["values"] == [
        "ready", "stage2", "stage1", "original", "true", "Reset view", "solid", "showing Original",
    ]  # fmt: skip


def test_the_canvas_is_not_blank_and_turns_zooms_and_switches(
    session: tuple[Path, dict[str, Any]],
):
    folder, _ = session
    shots = {path.stem: picture(path) for path in folder.glob("*.png")}
    front = shots["front"]
    assert 0.1 < covered(front).mean() < 0.7
    for name in ("dragged", "keys", "near", "stage1", "original"):
        assert np.abs(shots[name] - front).mean() > 0.01, name
    assert np.abs(shots["reset"] - front).mean() < 1e-3
    assert covered(shots["near"]).mean() > 1.1 * covered(front).mean()
    for name in ("stage1", "original"):  # the same shape in other colours
        assert (covered(shots[name]) == covered(front)).mean() > 0.99
    grey = shots["original"][covered(shots["original"])]
    assert np.abs(grey - grey.mean(-1, keepdims=True)).mean() < 0.02


@pytest.mark.parametrize("name", ["stage2", "stage1"])
def test_it_shows_what_our_renderer_shows(
    name: str, session: tuple[Path, dict[str, Any]], finished: Run
):
    """The same silhouette, and the same colours under the same light."""
    folder, _ = session
    theirs = middle(picture(folder / ("front.png" if name == "stage2" else "stage1.png")))
    ours = finished.front(name, theirs.shape[0])
    one, other = covered(theirs), covered(ours)
    assert (one & other).sum() / (one | other).sum() >= 0.98
    inside = one & other
    difference = np.abs(theirs[inside].mean(0) - ours[inside].mean(0))
    assert difference.max() < 0.02, difference
    assert np.abs(theirs - ours)[inside].mean() < 0.035


@pytest.mark.parametrize("light", ["sky", None])
def test_other_lights_and_none(light: str | None, tmp_path: Path):
    run = make_run(tmp_path / "run", light)
    told = browse(write_report(run.folder), [shot("canvas.png")], tmp_path, still=True)
    assert told["errors"] == []
    theirs = middle(picture(tmp_path / "canvas.png"))
    ours = run.front("stage2", theirs.shape[0])
    inside = covered(theirs) & covered(ours)
    difference = np.abs(theirs[inside].mean(0) - ours[inside].mean(0))
    assert difference.max() < 0.02, difference


def test_without_webgl_a_picture_and_a_message(finished: Run, tmp_path: Path):
    page = write_report(finished.folder)
    message = "document.querySelector('[role=status]').innerText"
    seen = "getComputedStyle(document.querySelector('.still')).visibility"
    steps = [["evaluate", STATE], ["evaluate", message], ["evaluate", seen], ["shot", "page.png"]]
    told = browse(page, steps, tmp_path, webgl=False)
    state, text, visibility = told["values"]
    assert (state, visibility) == ("failed", "visible")
    assert "a picture instead" in text
    assert told["requests"] == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_narrow_window_does_not_scroll_sideways(dark: bool, finished: Run, tmp_path: Path):
    study = make_study(tmp_path / "out")
    runs = [(folder, read_run(folder / "run.json")) for folder in (finished.folder, study)]
    index = tmp_path / "index.html"
    write_index([*runs, *runs], index)
    for page in (write_report(finished.folder), write_report(study), index):
        told = browse(
            page, [["evaluate", OVERFLOW]], tmp_path, width=390, height=844, dark=dark, still=True
        )
        assert told == {"errors": [], "requests": [], "values": [0]}, page


def test_hostile_text_runs_nothing(finished: Run, tmp_path: Path):
    folder = copy_run(
        finished,
        tmp_path / "run",
        config={"subject": {"mesh": HOSTILE, "prompt": HOSTILE}, HOSTILE: HOSTILE},
        command=HOSTILE,
        error=HOSTILE,
        details={"materials": ["stage2"], HOSTILE: HOSTILE},
    )
    steps = [
        ["evaluate", STATE],
        ["evaluate", "document.querySelectorAll('img[onerror], img[src=x]').length"],
        ["evaluate", "document.querySelector('h1').textContent"],
    ]
    told = browse(write_report(folder), steps, tmp_path)
    assert told["errors"] == []
    assert told["requests"] == []
    state, images, heading = told["values"]
    assert (state, images) == ("ready", 0)
    assert HOSTILE in heading
