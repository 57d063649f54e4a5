"""The renderer study: its file, its rows, and that a wrong result has no speed."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sdslab.errors import UserError
from sdslab.runs.schema import read_run
from sdslab.study import mesh_load, renderer, renderer_measurements
from sdslab.study.__main__ import Overrides, Selection, run
from sdslab.study.renderer_measurements import Comparison, RendererSettings, compare
from sdslab.study.study_file import load_study

STUDY = """
title = "A small renderer study"
kind = "renderer"
[settings]
mesh = "sphere"
repeats = 2
[[comparisons]]
name = "visibility"
label = "faces"
operation = "visibility"
views = 2
render_size = 32
[[comparisons]]
name = "texture"
label = "look-up"
operation = "texture"
views = 2
render_size = 32
texture_size = 64
[[loads]]
name = "load"
label = "OBJ"
file = "obj"
faces = 200
repeats = 1
[[steps]]
name = "step"
label = "a step"
subdivisions = 1
views = 1
render_size = 32
texture_size = 64
[[recoveries]]
name = "unlit"
label = "albedo"
unlit = true
views = 2
render_size = 48
texture_size = 16
steps = 10
learning_rate = 0.1
[[recoveries]]
name = "no_metal"
label = "no metal"
lights = ["white"]
disable = ["metallic"]
views = 1
render_size = 32
texture_size = 16
steps = 2
learning_rate = 0.1
[presets.quick.settings]
repeats = 1
[presets.quick.recoveries.unlit]
steps = 2
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(STUDY)
    return path


def test_every_row_is_written(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    run(Selection(str(study)), Overrides(out="results", device="cpu"))
    out = tmp_path / "results"
    assert {path.name for path in out.iterdir()} == {
        "small", "small.csv", "small.json", "small.md", "small.png",
    }  # fmt: skip
    table = pd.read_csv(out / "small.csv").set_index("row")
    assert list(table.index) == ["visibility", "texture", "load", "step", "unlit", "no_metal"]
    assert table["disagreement"].dropna().to_numpy().max() <= 1e-4
    ratio = table.loc["texture", "reference_ms_q50"] / table.loc["texture", "ours_ms_q50"]
    assert table.loc["texture", "ratio"] == pytest.approx(ratio, rel=1e-4)
    assert table.loc["load", "peak_mb"] > table.loc["load", "reference_peak_mb"] > 20
    assert table.loc["step", "faces"] == 4 * 3968
    assert table.loc["step", "peak_mb"] > 100
    assert table.loc["unlit", "view_psnr_db"] > 15
    assert table.loc["no_metal", "metallic_psnr_db"] == math.inf
    assert all(isinstance(device, str) for device in table["device"])
    assert json.loads((out / "small.json").read_text())["run"]["config"]["settings"]["repeats"] == 2
    printed = capsys.readouterr().out
    assert (out / "small.md").read_text().strip() in printed


def test_a_wrong_result_has_no_speed(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    right = renderer_measurements.sample_texture
    monkeypatch.setattr(renderer_measurements, "sample_texture", lambda *given: 1.1 * right(*given))
    with pytest.raises(
        UserError, match=r"texture: ours must equal plain torch to 0\.0001, got 0\.09"
    ):
        run(Selection(str(study), only=("texture",)), Overrides(out=str(tmp_path / "out")))
    assert not list((tmp_path / "out").glob("*.csv"))
    (record,) = (tmp_path / "out").rglob("run.json")
    assert read_run(record)["outcome"] == "failed"


def test_what_was_measured_before_an_interruption_is_kept(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(case: Comparison, settings: RendererSettings) -> dict[str, Any]:
        if case.name == "texture":
            raise KeyboardInterrupt
        return compare(case, settings)

    monkeypatch.setattr(renderer, "compare", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run(Selection(str(study)), Overrides(out=str(tmp_path / "out")))
    assert stopped.value.code == 130
    assert f"the rows so far are in {tmp_path / 'out'}/small.json" in capsys.readouterr().err
    (row,) = json.loads((tmp_path / "out" / "small.json").read_text())["rows"]
    assert row["row"] == "visibility"
    assert row["ratio"] > 0


def test_a_nan_is_a_wrong_result(monkeypatch: pytest.MonkeyPatch):
    right = renderer_measurements.sample_texture
    monkeypatch.setattr(
        renderer_measurements, "sample_texture", lambda *given: math.nan * right(*given)
    )
    case = Comparison("texture", "x", "texture", views=1, render_size=16, texture_size=16)
    with pytest.raises(UserError, match="got nan; no speed"):
        compare(case, RendererSettings("sphere", device="cpu", repeats=1))


def test_options_of_other_studies_are_refused(study: Path):
    with pytest.raises(UserError, match=r"takes --preset, --only, .*, got --image"):
        run(Selection(str(study)), Overrides(image=("coffee",)))
    with pytest.raises(UserError, match="got --steps"):
        run(Selection(str(study)), Overrides(steps=0))
    with pytest.raises(UserError, match="got --fresh"):
        run(Selection(str(study), fresh=True), Overrides())
    with pytest.raises(UserError, match="--only must name one of visibility, texture, load, step"):
        run(Selection(str(study), only=("nothing",)), Overrides())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("repeats = 2", "repeat = 2", "valid keys are mesh, target, device"),
        ("texture_size = 16", "texture_size = 17", "texture_size must be a power of two"),
        ('operation = "texture"', 'operation = "opera"', "must be one of visibility, texture"),
        ("[[steps]]", "[[step]]", "valid keys are title, kind, settings, comparisons"),
        ("[presets.quick.recoveries.unlit]", "[presets.quick.recoveries.lit]", "valid keys are"),
        ("views = 1", 'views = "one"', "must be int"),
    ],
    ids=["setting", "texture", "operation", "section", "preset row", "type"],
)
def test_mistakes_name_what_is_valid(study: Path, old: str, new: str, message: str):
    study.write_text(STUDY.replace(old, new))
    with pytest.raises(UserError, match=message):
        load_study(study, "quick")


def test_presets_reach_into_rows(study: Path):
    assert load_study(study).recoveries[0].steps == 10
    quick = load_study(study, "quick")
    assert quick.recoveries[0].steps == 2
    assert quick.settings.repeats == 1
    with pytest.raises(UserError, match="preset must be one of quick, got 'slow'"):
        load_study(study, "slow")


@pytest.mark.parametrize("kind", ["obj", "ply", "glb"])
def test_a_grid_is_loaded_as_it_was_written(kind: str, tmp_path: Path):
    path = tmp_path / f"grid.{kind}"
    mesh_load.write_grid(path, 50)
    positions, uv = mesh_load.load_ours(path)()
    assert positions.shape == (50, 3, 3)
    assert positions[:, :, :2] == pytest.approx(2 * uv - 1, abs=1e-6)
    assert mesh_load.disagreement(path) <= 1e-6
    assert all(value > 0 for value in mesh_load.measure_load("trimesh", path))


@pytest.mark.parametrize("wrong", ["positions", "faces"])
def test_another_mesh_has_no_speed(
    wrong: str, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def load(path: Path) -> Callable[[], mesh_load.Corners]:
        positions, uv = mesh_load.load_trimesh(path)()
        if wrong == "positions":
            return lambda: (positions + 0.1, uv)
        return lambda: (positions[1:], uv[1:])

    monkeypatch.setitem(mesh_load.LOADERS, "ours", load)
    with pytest.raises(UserError, match=r"load: ours must equal trimesh to 1e-06, got (0\.1|inf)"):
        run(Selection(str(study), only=("load",)), Overrides(out=str(tmp_path / "out")))
