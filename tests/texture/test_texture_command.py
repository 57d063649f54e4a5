"""``python -m sdslab.texture`` as a user runs it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from sdslab.meshes.mesh_io import load_mesh
from sdslab.pictures.metrics import psnr_db
from sdslab.rendering.cameras import six_views
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.renderer import Renderer
from sdslab.runs.schema import read_run
from sdslab.texture.inputs import own_maps
from tests.texture_runs import texture

SMALL = (
    "--texture-size=64", "--render-size=64", "--views=2", "--turntable=2", "--picture-size=64",
    "--device=cpu",
)  # fmt: skip
# What is there once ten steps are taken, so that a signal comes after the first one.
OFTEN = (*SMALL, "--preview-every=10")
LATER = Path("previews") / "recovery-000010.png"


def start(folder: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sdslab.texture", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def command_line(folder: Path, *arguments: str | Path) -> tuple[int, str, str]:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for(file: Path) -> None:
    """Until the run has written it: where the kernels must compile first, a while."""
    deadline = time.monotonic() + 120
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("texture")
    code, out, err = command_line(
        folder, "torus", "--target", "coffee", "--light", "studio", "--steps=4", "--exr", *SMALL
    )
    assert code == 0, err
    return folder / "runs" / "torus-coffee", out


def test_a_run_leaves_what_it_says(finished: tuple[Path, str]):
    out, printed = finished
    assert {path.name for path in out.iterdir()} == {
        "mesh.glb", "obj", "maps", "contact_sheet.png", "turntable.mp4", "run.json", "report.html",
        "metrics.csv", "previews", "target", "original", "front.png", "light.hdr",
        "inputs",
    }  # fmt: skip
    assert (out / "maps" / "albedo.exr").stat().st_size > 0
    record = read_run(out / "run.json")
    assert record["outcome"] == "finished"
    results = record["metrics"]
    assert results["steps"] == 4
    assert 0 < results["seen_texels"] <= results["covered_texels"] <= 64 * 64
    assert set(results["map_psnr_db"]) == {"albedo", "roughness", "metallic", "normal", "all"}
    assert f"held-out views: {results['view_psnr_db']:.2f} dB" in printed
    assert printed.splitlines()[-1] == f"report: {out.relative_to(out.parents[1])}/report.html"
    assert {"loading", "recovery", "writing", "total"} <= set(record["seconds"])
    assert record["seeds"] == [0]
    assert record["details"]["materials"] == ["recovered", "target", "original"]
    assert record["command"].startswith("python -m sdslab.texture torus --target coffee")
    assert record["config"]["optimization"]["steps"] == 4
    metrics = pd.read_csv(out / "metrics.csv")
    assert list(metrics["step"]) == [0, 1, 2, 3]
    assert min(metrics["gradient_norm"].tolist()) > 0
    assert sorted(path.name for path in (out / "previews").iterdir()) == [
        f"recovery-{step:06d}.png" for step in range(4)
    ]
    with Image.open(out / "inputs" / "target.png") as target:
        assert target.size == (64, 64)
    with Image.open(out / "front.png") as front:
        assert front.size == (64, 64)
    with Image.open(out / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 500


def test_the_glb_renders_as_the_live_material(finished: tuple[Path, str]):
    """Read back, it gives the same pictures to 45 dB, at the file's own scale."""
    out, _ = finished
    reloaded, original = load_mesh(out / "mesh.glb"), load_mesh("torus")
    assert (reloaded.positions - original.positions).abs().max() < 1e-6
    assert (reloaded.uv - original.uv).abs().max() < 1e-6
    assert reloaded.faces.equal(original.faces)
    pictures = []
    from sdslab.meshes.material import load_maps

    backend = CpuBackend()
    for mesh, maps in (
        (reloaded, own_maps(reloaded, 64)),
        (original, load_maps(out / "maps")),
    ):
        renderer = Renderer(mesh, backend)
        surface = renderer.see(six_views(renderer.bounding_radius), 96)
        pictures.append(renderer.picture(surface, maps, None, torch.ones(6, 3, 96, 96)))
    assert psnr_db(*pictures) > 45


def test_a_finished_run_is_kept_and_another_one_refused(finished: tuple[Path, str]):
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    same = ("torus", "--target", "coffee", "--light", "studio", "--steps=4", "--exr", *SMALL)
    code, printed, err = command_line(out.parents[1], *same)
    assert code == 0, err
    assert "holds this run's results already; --fresh makes them again" in printed
    code, _, err = command_line(out.parents[1], *same, "--seed=3")
    assert code == 2
    assert "holds another one (seed 0 there, 3 here); give another --out, or --fresh" in err
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_unlit_runs_start_from_the_files_own_maps(finished: tuple[Path, str], tmp_path: Path):
    glb = finished[0] / "mesh.glb"
    code, out, err = command_line(
        tmp_path, glb, "--target", glb, "--init", "source", "--unlit", "--steps=1", *SMALL
    )
    assert code == 0, err
    assert "held-out views: inf dB" in out
    assert "roughness" not in out
    record = read_run(tmp_path / "runs" / "mesh-mesh" / "run.json")
    assert record["outcome"] == "finished"  # at once, for there is nothing to move
    assert record["metrics"]["seen_texels"] > 0


def test_ctrl_c_writes_what_was_reached(tmp_path: Path):
    process = start(tmp_path, "torus", "--target", "coffee", "--unlit", "--steps=100000", *OFTEN)
    run = tmp_path / "runs" / "torus-coffee" / "run.json"
    wait_for(run.parent / LATER)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    record = read_run(run)
    assert record["outcome"] == "interrupted"
    results = record["metrics"]
    assert out.splitlines()[-1] == "report: runs/torus-coffee/report.html"
    assert 10 <= results["steps"] < 100_000
    assert (run.parent / "mesh.glb").exists()
    assert f"{results['steps']} steps" in out
    assert "the same command, or --resume runs/torus-coffee, goes on from there" in err
    assert list(run.parent.glob("checkpoint-*.safetensors"))


@pytest.mark.slow
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path):
    """Bit for bit, and with the same log of losses."""
    arguments = ("sphere", "--target", "coffee", "--light", "studio", "--steps=60", *OFTEN)
    process = start(tmp_path, *arguments, "--out", "stopped")
    wait_for(tmp_path / "stopped" / LATER)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 143, err
    taken = read_run(tmp_path / "stopped" / "run.json")["metrics"]["steps"]
    assert 10 <= taken < 60
    code, _, err = command_line(tmp_path, *arguments, "--out", "stopped")
    assert code == 0, err
    assert f"goes on from step {taken} of 60" in err
    assert not list((tmp_path / "stopped").glob("checkpoint-*"))
    code, _, err = command_line(tmp_path, *arguments, "--out", "whole")
    assert code == 0, err
    for name in ("albedo", "normal", "metallic_roughness"):
        files = [tmp_path / run / "maps" / f"{name}.png" for run in ("stopped", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()
    losses = [pd.read_csv(tmp_path / run / "metrics.csv")["loss"] for run in ("stopped", "whole")]
    assert len(losses[0]) == 60
    assert losses[0].equals(losses[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("torus", "--guidance", "degenerate"), "--guidance degenerate needs --target"),
        (("torus", "--target", "brick", "--prompt", "a cow"), "--prompt and --target; give one"),
        (("torus", "--prompt", " "), "--prompt must say something"),
        (("torus", "--target", "brick", "--model", "m"), "--model is for --prompt"),
        (("torus", "--parameterization", "dip"), "--parameterization dip is for --prompt"),
        (("torus", "--guidance", "deepfloyd"), "--guidance deepfloyd needs --prompt"),
        (("nothing.obj", "--target", "brick"), "mesh must be an existing file or one of apple"),
        (("torus", "--target", "nothing.png"), "--target must be a material that fits the mesh"),
        (("torus", "--target", "nothing.glb"), "--target must be a material that fits the mesh"),
        (("torus", "--target", "brick", "--init", "x" * 300), "--init must be grey, random,"),
        (("torus", "--target", "brick", "--texture-size=100"), "must be a power of two up to 8192"),
        (("torus", "--target", "brick", "--steps=0"), "--steps must be a number from 1"),
        (("torus", "--target", "brick", "--light", "moon"), "moon"),
        (("torus", "--target", "brick", "--unlit", "--turn-light", "step"), "exclude each other"),
        (("torus", "--fixed-light", "--light-intensity", "2", "2"), "exclude each other"),
        (("torus", "--light-intensity", "3", "2"), "two numbers from 0 to 1000"),
        (("torus", "--target", "brick", "--unlit", "--light", "sky"), "exclude each other"),
        (("torus", "--target", "brick", "--unlit", "--lamp", "point"), "--lamp and --unlit or"),
        (("torus", "--target", "brick", "--device", "cuda:99"), "needs a CUDA GPU"),
        (("torus", "--target", "brick", "--renderer", "nvdiffrast"), "needs a CUDA device"),
        (("torus", "--target", "brick", "--learning-rate=-1"), "--learning-rate must be a"),
        (("torus", "--target", "brick", "--out", "file"), "--out must be a folder"),
    ],
    ids=[
        "no target", "two leads", "empty prompt", "model", "theta", "no prompt", "mesh", "target",
        "target mesh", "init", "texture size", "steps", "light", "turn", "fixed",
        "intensity", "unlit", "lamp", "device",
        "renderer", "learning rate", "out",
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_write_nothing(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert texture(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
