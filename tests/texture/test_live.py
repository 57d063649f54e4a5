"""``--live``: what a browser shows and asks for, while the run goes on."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdslab.errors import UserError
from sdslab.meshes.material import constant_material
from sdslab.meshes.mesh_io import load_mesh
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.optimization.optimize import Step
from sdslab.pictures.image_io import load_image
from tests.texture_runs import (
    SMALL,
    after_steps,
    assert_same_maps,
    saved_steps,
    saved_tensors,
    texture,
)

pytest.importorskip("viser", reason="needs viser, the extra `live`")
from sdslab.texture import live
from sdslab.texture.live import CURVE_POINTS, Curve, LiveView
from sdslab.texture.live_page import HOST
from sdslab.texture.live_picture import LiveScene

REPOSITORY = Path(__file__).parents[2]
BROWSER = Path(__file__).with_name("live_view.mjs")
RUN = ("torus", "--target", "coffee", "--light", "white", *SMALL)
STAGES = ("stage1-coarse", "stage1-middle", "stage1-fine", "stage2")
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

    def ask(_: object) -> None:
        views[0].ask("step")
        views[0].ask("save")

    def go_on(_: object) -> None:
        assert saved_steps(Path("live")) == ("recovery", 2)
        assert Path("live/mesh.glb").read_bytes().startswith(b"glTF")
        assert views[0].paused
        views[0].ask("resume")

    with after_steps(monkeypatch, 2, ask), after_steps(monkeypatch, 3, go_on):
        assert texture(monkeypatch, *RUN, *LIVE, "--steps=6", "--out=live") == 0
    assert texture(monkeypatch, *RUN, "--steps=6", "--out=plain") == 0
    assert_same_maps(Path("live"), Path("plain"))


@pytest.mark.parametrize("size", [8, 32, 128], ids=lambda size: f"maps of {size}")
def test_every_button_works_at_every_stage(size: int, monkeypatch, tmp_path: Path):
    """Each stage has maps of its own size; what is saved always has the run's."""
    monkeypatch.setattr(live, "RELOAD_SECONDS", 1e6)  # as if somebody were looking
    maps = constant_material(size, size, albedo=(0.2, 0.4, 0.6), roughness=0.8)
    saved, said = [], []

    def step(index: int) -> float:
        taken = Step(index, 1.0, 1.0, torch.zeros(1), 0, float(index))
        return view.follow("stage", taken, 10, lambda: maps, lambda: saved.append(index))

    scene = LiveScene(PROCEDURAL_MESHES["apple"](), {}, "srgb")
    with LiveView(scene, tmp_path, 64, 0, said.append) as view:
        step(0)
        view.ask("save")
        step(1)
        assert saved == [1]
        material = load_mesh(tmp_path / "mesh.glb").source_material
        assert material is not None
        assert (material.maps - maps[:1, :1].expand(64, 64, 8)).abs().max() < 0.005
        for _ in range(3):
            view.ask("step")
        for index in range(2, 5):
            step(index)  # each of them goes by
        threading.Timer(0.5, view.ask, ("resume",)).start()
        assert step(5) > 0.2
        assert not view.paused
        view.ask("pause")
        view.ask("step")
        view.ask("resume")  # forgets the step
        step(6)
        assert not view.paused
    assert not view._process.is_alive()


def test_the_address_is_told_and_is_this_machine_only(
    views: list[LiveView], monkeypatch, capfd: pytest.CaptureFixture[str]
):
    def wait(_: object) -> None:
        while views[0].url is None:
            views[0]._listen(0.1)

    with after_steps(monkeypatch, 1, wait):
        assert texture(monkeypatch, *RUN, *LIVE, "--steps=3", "--out=run") == 0
    assert views[0].url is not None
    assert views[0].url.startswith(f"http://{HOST}:")
    assert f"live view: {views[0].url}\n" in capfd.readouterr().err


@pytest.mark.parametrize("delay", [0.0, 1.0], ids=["before it", "in it"])
def test_ctrl_c_is_heard_in_a_pause(views: list[LiveView], monkeypatch, delay: float):
    """Also one that came in the step before."""

    def pause(_: object) -> None:
        views[0].ask("pause")
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr(live, "RELOAD_SECONDS", 1e6)
    with after_steps(monkeypatch, 3, pause):
        assert texture(monkeypatch, *RUN, *LIVE, "--steps=6", "--out=run") == 130
    assert saved_steps(Path("run")) == ("recovery", 3)
    assert all(tensor.isfinite().all() for tensor in saved_tensors(Path("run")).values())


def test_a_pause_ends_when_nobody_looks_any_more(views: list[LiveView], monkeypatch):
    monkeypatch.setattr(live, "RELOAD_SECONDS", 0.2)

    with after_steps(monkeypatch, 2, lambda _: views[0].ask("pause")):
        assert texture(monkeypatch, *RUN, *LIVE, "--steps=4", "--out=run") == 0


def test_a_page_that_dies_in_a_pause_does_not_end_the_run(
    views: list[LiveView], monkeypatch, capsys: pytest.CaptureFixture[str]
):
    def kill(_: object) -> None:
        views[0].ask("pause")
        threading.Timer(0.2, views[0]._process.kill).start()

    monkeypatch.setattr(live, "RELOAD_SECONDS", 1e6)
    with after_steps(monkeypatch, 2, kill):
        assert texture(monkeypatch, *RUN, *LIVE, "--steps=4", "--out=run") == 0
    assert "the live view is gone; the run goes on" in capsys.readouterr().err


def test_what_cannot_be_saved_does_not_end_the_run(views: list[LiveView], monkeypatch):
    notices = []

    def refuse(*_: object) -> None:
        raise UserError("the disk is full")

    def noted(view: LiveView, *values) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(live, "export_glb", refuse)
            save(view, *values)
        notices.append(view._news["notice"])

    save = LiveView._save
    monkeypatch.setattr(LiveView, "_save", noted)
    with after_steps(monkeypatch, 2, lambda _: views[0].ask("save")):
        assert texture(monkeypatch, *RUN, *LIVE, "--steps=4", "--out=run") == 0
    assert notices == ["**Not saved** (recovery, step 3): the disk is full"]


def test_a_port_in_use_is_said_before_anything_is_loaded(
    monkeypatch, capsys: pytest.CaptureFixture[str]
):
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        assert texture(monkeypatch, *RUN, "--live", f"--live-port={port}") == 2
    error = capsys.readouterr().err
    assert f"got {port}, which is in use" in error
    assert len(error.splitlines()) == 1
    assert list(Path().iterdir()) == []


def test_a_missing_viser_names_its_install_line(monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert texture(monkeypatch, *RUN, "--live") == 2
    error = capsys.readouterr().err
    assert 'install it: pip install "sdslab[live]"' in error
    assert len(error.splitlines()) == 1
    assert list(Path().iterdir()) == []


def test_a_long_curve_is_thinned_out_evenly():
    curve = Curve([])
    for index in range(10_000):
        curve.add(index, float(index))
    steps = [step for step, _ in curve.points]
    assert CURVE_POINTS / 2 < len(steps) <= CURVE_POINTS
    assert steps[0] == 0
    assert {b - a for a, b in itertools.pairwise(steps)} == {curve.stride}
    assert all(loss == step for step, loss in curve.points)


Act = Callable[[str], str]

# Runs the command line; each stage pauses after its first step, however late the browser comes,
# but begins only when a file `hold` is gone and all clicks before it have been heard.
PAUSING = """
from pathlib import Path
from sdslab.texture import __main__, live

def begin(view, *values, own=live.LiveView.begin):
    held = True
    while held or view.paused:
        held = Path("hold").exists()
        view._listen(0.1)
    view.ask("pause")
    own(view, *values)

if __name__ == "__main__":
    live.LiveView.begin, live.RELOAD_SECONDS = begin, 1e6
    __main__.main()
"""


@pytest.fixture
def browser() -> Iterator[Callable[[str], Act]]:
    if shutil.which("node") is None or not (REPOSITORY / "tests" / "node_modules").is_dir():
        pytest.skip("needs node and its packages: cd tests && npm ci")
    processes = []

    def opened(url: str) -> Act:
        process = subprocess.Popen(
            ["node", BROWSER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdin
        assert process.stdout
        write, read = process.stdin, process.stdout
        assert json.loads(read.readline()) == "here"

        def act(command: str) -> str:
            write.write(command + "\n")
            write.flush()
            if command == "leave":
                return str(process.wait(timeout=60))
            return json.loads(read.readline())

        return act

    yield opened
    for process in processes:
        process.kill()
        with process:  # closes its pipes
            pass


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Starts a watched run; gives it and its page's address."""
    runs, readers = [], []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        command = (sys.executable, "-c", PAUSING, *arguments, "--turntable=0", *LIVE)
        run = subprocess.Popen(
            [*command, "--out=run"], cwd=tmp_path,
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        runs.append(run)
        assert run.stderr
        line = next(line for line in run.stderr if line.startswith("live view: "))
        readers.append(threading.Thread(target=run.stderr.read, daemon=True))
        readers[-1].start()  # that it never blocks
        return run, line.split()[2]

    yield start
    for run, reader in zip(runs, readers, strict=True):
        run.kill()
        run.wait()
        reader.join(10)
        run.stderr.close()


def until(page: Act, pattern: str) -> re.Match[str]:
    """Waits until the panel says something, and gives up rather than hang."""
    end = time.monotonic() + 300
    while (found := re.search(pattern, text := page("text"))) is None:
        assert time.monotonic() < end, f"waited for {pattern!r}, the page says:\n{text}"
        time.sleep(0.2)
    return found


@pytest.mark.slow
def test_a_person_works_the_page_at_every_stage(started, browser, tmp_path: Path):
    """With maps of the sizes that a run has by default: 128² to 1024²."""
    run, url = started(
        "apple", "--exemplar=gravel", "--exemplar-scale=3", "--stage-two=sr-sds", "--steps=4",
        "--picture-size=64",
    )  # fmt: skip
    page = browser(url)
    for stage in STAGES:
        found = until(page, rf"{stage} · step ([1-9]) of 4.*\s+paused")
        page("press Save")
        until(page, rf"Saved at \S+ \({stage}, step {found[1]}\)")
        assert saved_steps(tmp_path / "run") == (stage, int(found[1]) - 1)
        page("press Step")
        until(page, rf"{stage} · step {int(found[1]) + 1} of 4.*\s+paused")
        if stage == STAGES[0]:
            page("reload")
            until(page, "paused")
        if stage != STAGES[-1]:
            (tmp_path / "hold").touch()
            for name in ("Resume", "Pause", "Step", "Resume"):  # an impatient one
                page(f"press {name}")
            until(page, r"Run\s+Pause\s+Step")
            (tmp_path / "hold").unlink()
    run.send_signal(signal.SIGINT)
    until(page, "The run was stopped|Connection lost|Connecting")
    assert page("leave") == "0"  # no error on its console
    assert run.wait(timeout=300) == 130
    assert saved_steps(tmp_path / "run")[0] == STAGES[-1]


@pytest.mark.slow
def test_the_page_shows_what_front_png_shows(started, browser, tmp_path: Path):
    run, url = started(
        "apple", "--target=coffee", "--texture-size=256", "--render-size=64", "--views=2",
        "--steps=9", "--picture-size=800",
    )  # fmt: skip
    page = browser(url)
    page("another")
    until(page, "paused")
    page("turn")
    page("press Front view")

    def look(name: str) -> np.ndarray:
        before = None
        while True:  # until it is as fine as it gets
            page(f"look {tmp_path / name}.png")
            with Image.open(tmp_path / f"{name}.png") as picture:
                now = np.asarray(picture.convert("RGB"), np.float32)
            if before is not None and (before == now).all() and (now < 250).any():
                return now
            before = now
            time.sleep(4)

    shown = look("shown")
    page("choose Show roughness")
    roughness = look("roughness")
    assert np.ptp(roughness, axis=-1).max() < 20  # grey, but for what JPEG makes of it
    assert np.abs(roughness - shown).mean() > 3
    page("choose Show result")
    assert page("leave") == "0"
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=300) == 130
    front = load_image(tmp_path / "run" / "front.png", 800)[0].movedim(0, -1).numpy() * 255
    means = [picture[(picture < 250).any(-1)].mean() for picture in (shown, front)]
    assert means[0] == pytest.approx(means[1], abs=2)
