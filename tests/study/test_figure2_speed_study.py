"""The speed study of Figure 2: its rows, and that a wrong gradient has no speed."""

import itertools
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sdslab.errors import UserError
from sdslab.kernels import SDSResult
from sdslab.parameterizations.deep_image_prior import DeepImagePrior
from sdslab.pictures.image_io import load_image
from sdslab.study import figure2_speed, figure2_steps
from sdslab.study.__main__ import Overrides, Selection, run
from sdslab.study.figure2_speed import SHARES
from sdslab.study.figure2_steps import StraightforwardCell, as_printed, loop
from sdslab.study.reconstruct import Problem
from sdslab.study.study_file import load_study

STUDY = """
title = "Small steps"
kind = "figure2_speed"
[settings]
size = 64
repeats = 2
matmul_size = 32
[[cells]]
name = "pixel_rgb_epsilon"
[[cells]]
name = "pixel_dip"
[[cells]]
name = "latent_rgb"
[[cells]]
name = "recorded"
cell = "pixel_rgb"
recorded = true
size = 32
[presets.quick]
repeats = 1
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.toml"
    path.write_text(STUDY)
    return path


def test_every_row_is_written(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(Selection(str(study), preset="quick"), Overrides(out="results"))
    out = tmp_path / "results"
    assert {path.name for path in out.iterdir()} == {
        "small", "small.csv", "small.json", "small.md", "small.png",
    }  # fmt: skip
    table: Any = pd.read_csv(out / "small.csv").set_index("row")
    assert list(table.index) == ["pixel_rgb_epsilon", "pixel_dip", "latent_rgb", "recorded"]
    assert table["accepted"].all()
    shares = table[[f"{kind}_share" for kind in SHARES]]
    assert shares.sum(axis=1).to_list() == pytest.approx([1, 1, 1, 1], abs=1e-5)
    assert table.loc["pixel_rgb_epsilon", "convolution_share"] == 0
    assert table.loc["pixel_rgb_epsilon", "normalisation_share"] == 0
    assert table["size"].to_list() == [64, 64, 64, 32]
    assert table["recorded"].to_list() == [False, False, False, True]
    assert (table.loc[["pixel_dip", "latent_rgb"], "normalisation_share"] > 0.01).all()
    assert (table.loc[["pixel_dip", "latent_rgb"], "convolution_share"] > 0.2).all()
    rate = table["gflop"] / (table["convolution_share"] * table["ours_ms_q50"] / 1000)
    pd.testing.assert_series_equal(
        table["convolution_gflop_per_s"].iloc[1:3], rate.iloc[1:3], rtol=1e-3, check_names=False
    )
    assert table["torch"].eq(torch.__version__).all()
    assert len(json.loads((out / "small.json").read_text())["rows"]) == 4
    assert (out / "small.md").read_text().strip() in capsys.readouterr().out


def test_a_recorded_cell_s_arithmetic_is_counted_where_it_is_launched(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A replay on a GPU shows no operators."""
    text = STUDY.replace('"pixel_rgb"', '"pixel_dip"')
    study.write_text(text.replace("true\nsize = 32", "true\nsize = 64"))
    replay = itertools.repeat(None)
    monkeypatch.setattr(figure2_speed, "recorded", lambda *_: (replay, None))
    monkeypatch.setattr(figure2_speed, "recording_error", lambda *_: 0.0)
    monkeypatch.setattr(figure2_speed, "errors", lambda *_: (0.0, 1.0))
    monkeypatch.setattr(figure2_speed, "_shares", lambda *_: dict.fromkeys(SHARES, 0.25))
    run(Selection(str(study), preset="quick", only=("recorded",)), Overrides(out="results"))
    table: Any = pd.read_csv(tmp_path / "results" / "small.csv")
    assert table["gflop"][0] > 0.01


def test_a_wrong_gradient_is_reported_and_has_no_speed(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    right = figure2_steps.gradient_of

    def wrong(*arguments: Any) -> Any:
        gradient = right(*arguments)
        return lambda z, index: gradient(1.1 * z, index)

    monkeypatch.setattr(figure2_steps, "gradient_of", wrong)
    with pytest.raises(UserError, match=r"larger difference in pixel_rgb_epsilon; no speed"):
        run(Selection(str(study), only=("pixel_rgb_epsilon",)), Overrides(out="results"))
    table: Any = pd.read_csv(tmp_path / "results" / "small.csv")
    assert not table["accepted"].any()
    assert "ours_ms_q50" not in table
    assert "refused: difference" in (tmp_path / "results" / "small.md").read_text()


@pytest.mark.parametrize("name", ["pixel_rgb", "latent_rgb"])
def test_the_straightforward_step_goes_where_the_study_goes(name: str, latent_space):
    study = load_study(Path("studies/figure2_speed.toml"))
    cells = {timed.name: timed.cell for timed in study.cells}
    problem = Problem.of("astronaut", load_image("astronaut", 32), latent_space)
    steps = loop(cells[name], problem)[0]
    straightforward = StraightforwardCell(cells[name], problem, seed=0)
    for _ in range(4):
        z = next(steps).z
        theta = straightforward.theta()
        ours = problem.space(cells[name]).encode(theta).detach()
        torch.testing.assert_close(z, ours, rtol=1e-3, atol=1e-3)
        straightforward()


def test_a_recording_that_goes_elsewhere_is_reported(study: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        figure2_steps,
        "exact_gradient_of",
        lambda *_: lambda z, _: SDSResult(z, z.sum((1, 2, 3)), torch.zeros(len(z))),
    )
    with pytest.raises(UserError, match="larger difference in recorded; no speed"):
        run(Selection(str(study), only=("recorded",)), Overrides(out="results"))


def test_drawn_noise_is_not_recorded(study: Path):
    study.write_text(STUDY.replace('cell = "pixel_rgb"', 'cell = "pixel_rgb_epsilon"'))
    with pytest.raises(UserError, match="recorded: a recorded cell must have cancelled"):
        load_study(study)


def test_as_printed_is_the_same_function():
    network = DeepImagePrior((1, 3, 64, 64), 0, width=8).double()
    ours = network()
    as_printed(network)
    torch.testing.assert_close(network(), ours)
    assert network.noise.is_contiguous()


def test_a_cell_of_no_study_is_refused(study: Path):
    study.write_text(STUDY.replace('"pixel_dip"', '"pixel"'))
    with pytest.raises(
        UserError, match=r"named one of pixel_rgb, .* as in the study that is timed, got 'pixel'"
    ):
        load_study(study)


def test_a_cell_of_ones_own_parts_is_refused(study: Path):
    """Loading it runs none of its code."""
    example = Path(__file__).parents[2] / "examples" / "own_study.toml"
    study.write_text(
        f'kind = "figure2_speed"\n[settings]\nstudy = "{example}"\n[[cells]]\nname = "spectrum"\n'
    )
    with pytest.raises(UserError, match=r"spectrum must be a cell of our own parts"):
        load_study(study)
