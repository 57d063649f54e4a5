"""Pages as headless Chromium shows them, opened from disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdslab.report.comparison import write_index
from sdslab.report.run_page import write_report
from sdslab.runs.schema import read_run
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
        ["evaluate", "document.querySelector('[data-reset]').focus()"], ["key", "Shift+Tab"],
        ["evaluate", "document.activeElement.textContent"],
        ["evaluate", "getComputedStyle(document.activeElement).outlineStyle"],
        ["evaluate", "document.querySelector('[role=status]').textContent"],
    ]  # fmt: skip
    return folder, browse(write_report(finished.folder), steps, folder, still=True)


def test_it_opens_from_disk_without_an_error_or_a_request(session: tuple[Path, dict[str, Any]]):
    _, told = session
    assert told["errors"] == []
    assert told["requests"] == []
    assert told["values"] == [
        "ready", "stage2", "stage1", "original", "true", None, "Wireframew", "solid",
        "showing Original, all, in light",
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


def chosen(name: str, value: str) -> list[str]:
    """Sets a control and tells the page, as a hand does."""
    control = f"document.querySelector('figcaption [data-{name}]')"
    return ["evaluate", f"{control}.value = '{value}', {control}.dispatchEvent(new Event('input'))"]


def test_light_exposure_edges_and_single_maps(finished: Run, tmp_path: Path):
    steps = [
        shot("front.png"), chosen("exposure", "1"), shot("bright.png"), chosen("exposure", "-1"),
        shot("dark.png"), chosen("exposure", "0"), chosen("turn", "90"), shot("turned.png"),
        chosen("turn", "0"), chosen("light", "room"), shot("room.png"),
        chosen("light", "white"), shot("white.png"),
        ["evaluate", "document.querySelector('canvas').focus()"], ["key", "w"], shot("edges.png"),
        ["evaluate", "document.querySelector('[data-wireframe]').getAttribute('aria-pressed')"],
        ["click", "[data-wireframe]"],
        ["evaluate", "document.querySelector('[data-exposure]').focus()"], ["key", "ArrowRight"],
        ["evaluate", "document.querySelector('[data-exposure]').value"], chosen("exposure", "0"),
        *(
            step
            for kind in ("albedo", "roughness", "metallic", "normal")
            for step in (chosen("channel", kind), shot(f"{kind}.png"))
        ),
        ["evaluate", "getComputedStyle(document.querySelector('canvas')).touchAction"],
    ]  # fmt: skip
    told = browse(write_report(finished.folder), steps, tmp_path, still=True)
    assert told["errors"] == []
    assert told["requests"] == []
    assert [value for value in told["values"] if isinstance(value, str)] == [
        "true", "0.25", "pan-y",
    ]  # fmt: skip
    shots = {path.stem: picture(path) for path in tmp_path.glob("*.png")}
    inside = covered(shots["front"])
    means = {name: pixels[inside].mean() for name, pixels in shots.items()}
    assert means["dark"] + 0.05 < means["front"] < means["bright"] - 0.05
    for name in ("turned", "room", "white", "albedo", "normal"):
        assert np.abs(shots[name] - shots["front"])[inside].mean() > 0.01, name
    assert means["white"] > 0.2
    edges, plain = shots["edges"][inside], shots["white"][inside]
    assert 0.02 < (np.abs(edges - plain).max(-1) > 0.05).mean() < 0.9
    # Single maps have the numbers of their files.
    maps = finished.maps["stage2"]
    for name, channel in (("roughness", 3), ("metallic", 4)):
        pixels = shots[name][inside]
        assert np.abs(pixels - pixels.mean(-1, keepdims=True)).max() < 0.01, name
        assert abs(pixels.mean() - float(maps[..., channel].mean())) < 0.06, name
    assert np.abs(shots["normal"][inside].mean(0) - maps[..., 5:].mean((0, 1)).numpy()).max() < 0.06


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_view_lies_on_the_page_s_own_colour(dark: bool, finished: Run, tmp_path: Path):
    page = write_report(finished.folder)
    browse(page, [["shot", "view.png", ".stage"]], tmp_path, dark=dark, still=True)
    with Image.open(tmp_path / "view.png") as view:
        corner = np.asarray(view.convert("RGB"))[20, 20]
    assert corner.tolist() == ([38, 34, 31] if dark else [255, 255, 255])


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
