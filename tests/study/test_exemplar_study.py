"""The exemplar study: its file, its pictures, and that a second run makes none again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from sdslab.errors import UserError
from sdslab.pictures.image_io import load_image
from sdslab.study import exemplar_methods
from sdslab.study.__main__ import Overrides, Selection, run
from sdslab.study.exemplar_methods import ExemplarCase, Photo, Problem, Scores, make
from sdslab.study.study_file import find_study, load_study

STUDY = """
title = "A small exemplar study"
kind = "exemplar"
[settings]
photos = ["gravel"]
seeds = [0, 1]
sweep_photos = ["gravel", "brick"]
sweep_seeds = [0]
size = 32
exemplar_size = 32
[[cases]]
name = "crop"
label = "a real crop"
method = "crop"
[[cases]]
name = "sds"
label = "SDS"
method = "sds"
noise = "fresh"
timesteps = "random"
steps = 3
[[cases]]
name = "stage_one"
label = "stage I"
method = "pyramid"
steps = 3
[[cases]]
name = "sr"
label = "SR-SDS"
method = "sr_sds"
enlarges = "stage_one"
steps = 2
[[sweeps]]
name = "guidance"
case = "sds"
parameter = "guidance"
values = [0, 3]
[presets.quick]
seeds = [0]
"""
CASES = {
    "ddim": ExemplarCase("x", "x", "ddim", steps=20),
    "fresh": ExemplarCase("x", "x", "sds", steps=60, noise="fresh", timesteps="random"),
    "fixed": ExemplarCase("x", "x", "sds", steps=60),
    "pyramid": ExemplarCase("x", "x", "pyramid", steps=20, band_energy=True),
}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def problem() -> Problem:
    photo = Photo("gravel", load_image("gravel", 192))
    return Problem(photo, (photo,), 0, 32)


def score(picture: torch.Tensor, photo: torch.Tensor) -> Scores:
    return Scores.of(picture.clamp(0, 1), photo)


def test_every_picture_is_scored_and_written(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    run(Selection(str(study)), Overrides(out="results"))
    out = tmp_path / "results"
    names = {path.name for path in out.iterdir() if path.is_file()}
    assert names == {
        "small.csv", "small.json", "small.md", "small.png", "small.mode_seeking.png",
    }  # fmt: skip
    rows: Any = pd.read_csv(out / "small.csv")
    assert len(rows) == 4 * 2 + 2 * 2
    assert rows[rows["case"] == "sr"]["size"].eq(128).all()
    assert rows[rows["sweep"].notna()]["value"].isin([0, 3]).all()
    real = rows[rows["case"] == "crop"]
    assert real["sliced_wasserstein"].max() < 1e-6  # the whole photograph, at this size
    assert real["contrast"].sub(1).abs().max() < 1e-6
    record = json.loads((out / "small.json").read_text())
    assert len(record["rows"]) == len(rows)
    assert record["run"]["config"]["settings"]["size"] == 32
    assert (out / "small.md").read_text().strip() in capsys.readouterr().out
    with Image.open(out / "small.png") as sheet:
        assert sheet.width == 144 * 5

    # Again: nothing is made, and everything is written as before.
    monkeypatch.setattr(exemplar_methods, "make", None)
    (out / "small.csv").unlink()
    run(Selection(str(study)), Overrides(out="results"))
    pd.testing.assert_frame_equal(pd.read_csv(out / "small.csv"), rows)


def test_an_enlargement_alone_makes_what_it_enlarges(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    run(Selection(str(study), preset="quick", only=("sr",)), Overrides(seeds=(5,)))
    out = tmp_path / "figures" / "custom"
    assert pd.read_csv(out / "small.csv")["case"].tolist() == ["sr"]
    pictures = {path.name.split("-")[0] for path in (out / "small" / "pictures").iterdir()}
    assert pictures == {"sr_sds", "pyramid"}


def test_after_an_interruption_the_next_run_goes_on(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    made: list[str] = []

    def interrupted(case: ExemplarCase, problem: Problem) -> Any:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(case.name)
        return make(case, problem)

    selection = Selection(str(study), only=("sds",))
    with monkeypatch.context() as patch:
        patch.setattr(exemplar_methods, "make", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(selection, Overrides())
    assert len(json.loads(Path("figures/custom/small.json").read_text())["rows"]) == 1
    made.clear()

    def counted(case: ExemplarCase, problem: Problem) -> Any:
        made.append(case.name)
        return make(case, problem)

    monkeypatch.setattr(exemplar_methods, "make", counted)
    run(selection, Overrides())
    assert made == ["sds"]
    run(replace(selection, fresh=True), Overrides())
    assert made == ["sds"] * 3


def test_the_study_s_own_file_is_valid():
    for preset in (None, "quick"):
        study = load_study(find_study("exemplar"), preset)
        assert {case.method for case in study.cases} == {
            "crop", "ddim", "sds", "pyramid", "bicubic", "sr_sds",
        }  # fmt: skip
    assert len(study.swept(study.sweeps[0])) == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('enlarges = "stage_one"', 'enlarges = "nothing"', "must be one of crop, sds, stage_one"),
        ('enlarges = "stage_one"', "", "enlarges must be given for bicubic and sr_sds"),
        ('case = "sds"', 'case = "crop"', "case must be one of sds, got 'crop'"),
        ("steps = 2", "steps = 1", "steps must be from 2 to 1000000, got 1"),
        ("size = 32\nexemplar_size = 32", "size = 64\nexemplar_size = 32", "from 32 to exemplar"),
        ('noise = "fresh"', 'noise = "stale"', "must be one of fixed, fresh, got 'stale'"),
        ("values = [0, 3]", "value = [0, 3]", "valid keys are name, case, parameter, values"),
        ('name = "sr"', 'name = "sds"', "different names, got 'sds' twice"),
        ('name = "sr"', 'name = "x/../sr"', "a name must be lower-case letters, digits"),
    ],
)
def test_mistakes_in_the_file_are_told(study: Path, old: str, new: str, message: str):
    study.write_text(STUDY.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        load_study(study)


@pytest.mark.parametrize(
    ("selection", "overrides", "message"),
    [
        ({"only": ("nothing",)}, {}, "--only must name one of crop, sds, stage_one, sr, guidance"),
        ({}, {"vae": "shipped"}, "got --vae"),
        ({}, {"steps": 3}, "got --steps"),
        ({}, {"image": ("gravel", "gravel")}, "--image must name different pictures"),
        ({}, {"seeds": (1, 1)}, "--seeds must be different"),
        ({"preset": "paper"}, {}, "preset must be one of quick, got 'paper'"),
    ],
)
def test_options_that_cannot_work_are_refused(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    selection: dict[str, Any],
    overrides: dict[str, Any],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run(Selection(str(study), **selection), Overrides(**overrides))
    assert not (tmp_path / "figures").exists()


def test_fresh_noise_collapses_to_the_mean_and_fixed_noise_does_not(problem: Problem):
    photo = problem.photo.shrunk(4)
    fresh, fixed = (score(make(CASES[name], problem).picture, photo) for name in ("fresh", "fixed"))
    assert fresh.contrast < 0.3
    assert fixed.contrast > 0.6
    assert fixed.sliced_wasserstein < 0.5 * fresh.sliced_wasserstein


def test_a_pyramid_is_nearer_to_the_photo_than_samples():
    whole = Photo("gravel", load_image("gravel", 384))
    photo, problem = whole.shrunk(4), Problem(whole, (whole,), 0, 64)
    pyramid, sample = (
        score(make(replace(CASES[name], steps=40), problem).picture, photo)
        for name in ("pyramid", "ddim")
    )
    assert pyramid.sliced_wasserstein < 0.5 * sample.sliced_wasserstein
    assert pyramid.contrast == pytest.approx(1, abs=0.15)


def test_super_resolution_sharpens_and_shrinks_to_what_it_enlarges(problem: Problem):
    start = problem.photo.shrunk(4)[..., 8:40, 8:40]
    enlarging = replace(problem, start=start)
    sharp, blurred = (
        make(ExemplarCase("x", "x", method, 8, "fresh", enlarges="y"), enlarging).picture
        for method in ("sr_sds", "bicubic")
    )
    assert sharp.shape == blurred.shape == (1, 3, 128, 128)
    own = score(sharp, problem.photo.pixels)
    assert own.sliced_wasserstein < score(blurred, problem.photo.pixels).sliced_wasserstein
    shrunk = torch.nn.functional.interpolate(
        sharp, scale_factor=0.25, mode="bilinear", antialias=True
    )
    assert (shrunk - start).square().mean().sqrt() < 0.05


@pytest.mark.parametrize("name", CASES)
def test_a_picture_depends_on_its_seed_alone(problem: Problem, name: str):
    case = replace(CASES[name], steps=4)
    one, again = (make(case, problem).picture for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, make(case, replace(problem, seed=1)).picture, atol=1e-3)
