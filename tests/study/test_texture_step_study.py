"""The texture-step study: its rows, clock and UNets, and that a wrong gradient has no speed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sdslab.denoisers.noise_schedule import weighting_named
from sdslab.errors import UserError
from sdslab.study import texture_step, texture_step_problem
from sdslab.study.__main__ import Overrides, Selection, run
from sdslab.study.measuring import PHASES, PhaseClock
from sdslab.study.study_file import load_study
from sdslab.study.unet_configurations import CONFIGURATIONS, build_unet, parameter_count

CPU = torch.device("cpu")
STUDY = """
title = "A small texture step"
kind = "texture_step"
[settings]
light = "white"
repeats = 2
[[steps]]
name = "large"
label = "for a GPU"
device = "cuda"
unet = "IF-I-M"
views = 8
render_size = 512
texture_size = 1024
[[steps]]
name = "one"
label = "stage I"
device = "cpu"
unet = "tiny-I"
views = 2
render_size = 48
texture_size = 32
[[steps]]
name = "two"
label = "stage II"
device = "cpu"
unet = "tiny-II"
views = 1
render_size = 64
texture_size = 32
[presets.quick]
repeats = 1
[presets.quick.steps.two]
render_size = 32
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.toml"
    path.write_text(STUDY)
    return path


def test_every_row_for_this_device_is_written(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run(Selection(str(study)), Overrides(out="results", device="cpu"))
    out = tmp_path / "results"
    assert {path.name for path in out.iterdir()} == {
        "small", "small.csv", "small.json", "small.md", "small.png",
    }  # fmt: skip
    table: Any = pd.read_csv(out / "small.csv")
    assert list(table["row"]) == ["one", "two"]
    assert list(table["stage"]) == [1, 2]
    assert table["accepted"].all()
    assert (table["budget"] < 1e-2).all()
    for name in ("ours", "eager"):
        phases = table[[f"{name}_{phase}_ms_q50" for phase in PHASES]]
        assert (phases > 0).all(axis=None)
        outside = 1 - table[f"{name}_unet_ms_q50"] / phases.sum(axis=1)
        pd.testing.assert_series_equal(
            table[f"{name}_outside_unet"], outside, rtol=1e-4, check_names=False
        )
    assert (table[["ratio", "recorded_ratio", "recorded_step_ms_q50"]] > 0).all(axis=None)
    assert table["torch"].eq(torch.__version__).all()
    assert len(json.loads((out / "small.json").read_text())["rows"]) == 2
    text = (out / "small.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "Not measured, for they need another device: large." in text


def test_a_wrong_gradient_is_reported_and_has_no_speed(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    right: Callable[[str], object] = weighting_named
    monkeypatch.setattr(
        texture_step_problem, "weighting_named", lambda name: right(name.replace("castex", "unit"))
    )
    with pytest.raises(UserError, match=r"larger difference in one; no speed is reported"):
        run(Selection(str(study), only=("one",)), Overrides(out="results", device="cpu"))
    table: Any = pd.read_csv(tmp_path / "results" / "small.csv")
    assert not table["accepted"].any()
    assert "ours_step_ms_q50" not in table
    assert "refused: difference" in (tmp_path / "results" / "small.md").read_text()


def test_no_step_at_a_new_length_is_timed(monkeypatch: pytest.MonkeyPatch, study: Path):
    """A GPU captures such a step."""
    case = next(case for case in load_study(study).steps if case.name == "one")
    taken, lengths = [], iter([8, 8, 8, 16, 8, 32, 16, 8])
    original = texture_step.OurStep.__call__

    def noted(self: texture_step.OurStep) -> None:
        original(self)
        if self._recorded:
            new = next(lengths)
            taken.append((new, new not in self.lengths))
            self.lengths.add(new)

    monkeypatch.setattr(texture_step, "_errors", lambda *_: (0.0, 1.0))
    monkeypatch.setattr(texture_step_problem, "padded_length", lambda *_: 8)
    monkeypatch.setattr(texture_step.OurStep, "__call__", noted)
    settings = replace(load_study(study).settings, repeats=3)
    texture_step.measure_step(case, settings, CPU)
    assert len(taken) == 7  # two to warm up, two at new lengths, and three that count


def test_rows_of_another_device_are_refused_by_name(study: Path):
    with pytest.raises(UserError, match="one of one, two on a cpu device, got 'large'"):
        run(Selection(str(study), only=("large",)), Overrides(device="cpu"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('unet = "tiny-I"\n', 'unet = "tiny"\n', "must be one of IF-I-M, IF-I-XL, IF-II-L"),
        ("texture_size = 32", "texture_size = 33", "steps.one.texture_size must be a power of two"),
        ("views = 2", "views = 0", "steps.one.views must be from 1 to"),
        ("repeats = 2", "repeat = 2", "valid keys are mesh, light, device, repeats"),
    ],
    ids=["unet", "texture", "views", "key"],
)
def test_mistakes_are_told(study: Path, old: str, new: str, message: str):
    study.write_text(STUDY.replace(old, new))
    with pytest.raises(UserError, match=message):
        load_study(study)


def test_a_preset_reaches_into_rows(study: Path):
    quick = load_study(study, "quick")
    assert quick.settings.repeats == 1
    assert [case.render_size for case in quick.steps] == [512, 48, 32]


def test_the_clock_adds_a_phase_s_turns_and_leaves_out_what_has_none(
    monkeypatch: pytest.MonkeyPatch,
):
    seconds = iter([0.0, 1.0, 3.0, 3.5, 10.0, 10.25])
    monkeypatch.setattr("sdslab.study.measuring.seconds_now", lambda: next(seconds))
    clock = PhaseClock(CPU)
    for phase in ("render", "unet", "render", None, "optimizer", None):
        clock.mark(phase)
    assert clock.milliseconds() == {
        "render": 1500.0, "condition": 0.0, "unet": 2000.0, "gradient": 0.0, "optimizer": 250.0,
    }  # fmt: skip
    assert not any(clock.milliseconds().values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "published", "tolerance"),
    # The published 0.4 billion are rounded to one digit.
    [("IF-I-M", 0.4e9, 0.125), ("IF-I-XL", 4.3e9, 0.05), ("IF-II-L", 1.2e9, 0.05)],
)
def test_the_unets_are_as_large_as_the_published_ones(
    name: str, published: float, tolerance: float
):
    assert parameter_count(name) == pytest.approx(published, rel=tolerance)


@pytest.mark.parametrize("name", ["tiny-I", "tiny-II"])
def test_a_unet_is_the_same_at_every_call(name: str):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two = build_unet(name, CPU), build_unet(name, CPU)
    assert torch.rand(1).equal(expected)
    assert all(a.equal(b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in one.parameters())
    assert one.config["in_channels"] == CONFIGURATIONS[name]["in_channels"]
    half = build_unet(name, CPU, torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
