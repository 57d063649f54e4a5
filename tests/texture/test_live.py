"""``--live``: what a browser shows and asks for, while the run goes on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.texture_runs import (
    SMALL,
    after_steps,
    assert_same_maps,
    saved_steps,
    saved_tensors,
    texture,
)

pytest.importorskip("viser", reason="needs viser, the extra `live`")
from sdslab.texture.live import HOST, LiveView

REPOSITORY = Path(__file__).parents[2]
BROWSER = Path(__file__).with_name("live_view.mjs")
RUN = ("torus", "--target", "coffee", "--light", "white", *SMALL)
LIVE = ("--live", "--live-port=0")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> list[LiveView]:
    """Those that are opened from now on."""
    opened, enter = [], LiveView.__enter__

    def noted(view: LiveView) -> LiveView:
        opened.append(view)
        return enter(view)

    monkeypatch.setattr(LiveView, "__enter__", noted)
    return opened


def test_a_watched_run_ends_bit_for_bit_like_another(views: list[LiveView], monkeypatch):
    """Also one that was stepped, and saved in the middle."""
    asked = []

    def ask(_: object) -> None:
        assert views[0].url.startswith(f"http://{HOST}:")
        views[0].ask("step")
        views[0].ask("save")
        asked.append(views[0])

    def go_on(_: object) -> None:
        assert saved_steps(Path("live")) == ("recovery", 2)
        assert Path("live/mesh.glb").read_bytes().startswith(b"glTF")
        assert views[0].paused
        views[0].paused = False

    with after_steps(monkeypatch, 2, ask), after_steps(monkeypatch, 3, go_on):
        assert texture(monkeypatch, *RUN, *LIVE, "--steps=6", "--out=live") == 0
    assert asked == views
    assert texture(monkeypatch, *RUN, "--steps=6", "--out=plain") == 0
    assert_same_maps(Path("live"), Path("plain"))


def test_ctrl_c_is_heard_in_a_pause(views: list[LiveView], monkeypatch):
    def pause(_: object) -> None:
        views[0].paused = True
        views[0]._last_seen = float("inf")  # as if somebody were looking
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    with after_steps(monkeypatch, 3, pause):
        assert texture(monkeypatch, *RUN, *LIVE, "--steps=6", "--out=run") == 130
    assert saved_steps(Path("run")) == ("recovery", 3)
    assert all(tensor.isfinite().all() for tensor in saved_tensors(Path("run")).values())


def test_a_pause_ends_when_nobody_looks_any_more(views: list[LiveView], monkeypatch):
    monkeypatch.setattr("sdslab.texture.live.RELOAD_SECONDS", 0.2)

    def pause(_: object) -> None:
        views[0].paused = True

    with after_steps(monkeypatch, 2, pause):
        assert texture(monkeypatch, *RUN, *LIVE, "--steps=4", "--out=run") == 0


def test_a_missing_viser_names_its_install_line(monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert texture(monkeypatch, *RUN, "--live") == 2
    error = capsys.readouterr().err
    assert 'install it: pip install "sdslab[live]"' in error
    assert len(error.splitlines()) == 1
    assert list(Path().iterdir()) == []


@pytest.fixture
def browser() -> Iterator[Callable[[str], Callable[[str], str]]]:
    if shutil.which("node") is None or not (REPOSITORY / "tests" / "node_modules").is_dir():
        pytest.skip("needs node and its packages: cd tests && npm ci")
    processes = []

    def opened(url: str) -> Callable[[str], str]:
        process = subprocess.Popen(
            ["node", BROWSER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdin
        assert process.stdout
        write, read = process.stdin, process.stdout
        assert json.loads(read.readline()) == "here"

        def do(command: str) -> str:
            write.write(command + "\n")
            write.flush()
            if command == "leave":
                return str(process.wait(timeout=60))
            return json.loads(read.readline())

        return do

    yield opened
    for process in processes:
        process.kill()
        with process:  # closes its pipes
            pass


@pytest.fixture
def endless_run(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A watched run that no browser is too slow to find still going, and its page's address."""
    run = subprocess.Popen(
        [sys.executable, "-m", "sdslab.texture", "apple", "--target=coffee", "--texture-size=64",
         "--render-size=64", "--views=2", "--turntable=0", "--steps=1000000", "--out=run", *LIVE],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with run:
        assert run.stderr
        line = next(line for line in run.stderr if line.startswith("live view: "))
        yield run, line.split()[2]
        run.kill()


@pytest.mark.slow
def test_a_person_turns_pauses_steps_saves_and_leaves(
    endless_run: tuple[subprocess.Popen[str], str],
    browser: Callable[[str], Callable[[str], str]],
    tmp_path: Path,
):
    run, url = endless_run
    page = browser(url)

    def step() -> int:
        found = re.search(r"step (\d+) of 1000000", page("status"))
        assert found
        return int(found[1])

    def settled() -> int:
        before = -1
        while before != (now := step()):
            before = now
            time.sleep(3)
        return now

    page("pause")
    paused_at = settled()
    page("step")
    assert settled() == paused_at + 1
    page("save")
    while "saved" not in page("status"):
        time.sleep(0.2)
    assert (tmp_path / "run" / "mesh.glb").exists()
    assert saved_steps(tmp_path / "run") == ("recovery", paused_at)
    pictures = []
    for light in ("studio", "night"):
        page(f"light {light}")
        time.sleep(3)
        page(f"look {tmp_path / light}.png")
        with Image.open(tmp_path / f"{light}.png") as picture:
            pictures.append(np.asarray(picture.convert("L"), np.float32)[200:500, 350:650])
    page("turn")
    time.sleep(3)
    page(f"look {tmp_path / 'turned'}.png")
    with Image.open(tmp_path / "turned.png") as picture:
        pictures.append(np.asarray(picture.convert("L"), np.float32)[200:500, 350:650])
    assert pictures[0].std() > 20  # not blank
    assert pictures[1].mean() < pictures[0].mean() - 10
    assert np.abs(pictures[2] - pictures[1]).mean() > 3
    assert step() == paused_at + 1  # it has waited all the while
    page("pause")
    while step() == paused_at + 1:
        time.sleep(0.2)
    assert page("leave") == "0"  # no error on its console
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=300)
    assert run.returncode == 130
    assert saved_steps(tmp_path / "run")[1] > paused_at + 1
    assert (tmp_path / "run" / "maps" / "albedo.png").exists()
