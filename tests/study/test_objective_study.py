"""The study of objectives: its panels against closed forms, its table, and its bad inputs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sdslab.errors import UserError
from sdslab.study.__main__ import Overrides, Selection, run
from sdslab.study.experiment import Result
from sdslab.study.objective_measures import ObjectiveCase, Panel, points, work
from sdslab.study.objectives import Objectives
from sdslab.study.study_file import load_study, study_kind

SHIPPED = Path(__file__).parents[2] / "studies" / "objectives.toml"


def measured(panel: Panel, objective: str = "sds", **options: Any) -> Result:
    *_, result = work(ObjectiveCase("case", "a case", panel, objective, **options), 0)
    assert isinstance(result, Result)
    return result


def test_objectives_that_must_end_at_x_star_do_and_the_others_do_not():
    study = load_study(SHIPPED)
    cases = [case for case in study.cases if case.panel == "conformance"]
    assert sum(case.must for case in cases) == 7
    for case in cases:
        *_, result = work(replace(case, steps=150), 0)
        assert isinstance(result, Result)
        at_x_star = result.numbers["gradient_at_x_star"]
        if case.must:
            assert result.numbers["psnr_db"] > 100, case.name
            assert at_x_star < 0.1, case.name
        else:
            assert result.numbers["psnr_db"] < 20, case.name


def test_one_mode_stays_and_many_are_left():
    numbers = measured("modes", counts=(1, 64), steps=200).numbers
    assert numbers["counts"] == [1, 64]
    assert numbers["shares"][0] == pytest.approx(1, abs=1e-5)
    assert abs(numbers["shares"][1]) < 0.1


def test_without_noise_in_reach_a_mode_is_kept():
    """Below t = 100 the noise is smaller than the distance between points: x̂_0 is the mode."""
    numbers = measured("modes", counts=(64,), steps=200, timesteps=(20, 100)).numbers
    assert numbers["shares"][0] > 0.95


def test_points_do_not_depend_on_how_many_there_are():
    assert points(3, 0).equal(points(100, 0)[:3])
    assert points(10_000, 0).std() == pytest.approx(0.3, rel=0.01)


def test_vsd_covers_the_modes_that_sds_averages():
    sds, vsd, exact = (measured("particles", name).numbers for name in ("sds", "vsd", "ode"))
    assert sds["covered"] == 0
    assert sds["distance"] > 0.5  # the mean of the modes is the middle of the circle
    assert vsd["covered"] == exact["covered"] == 1
    assert vsd["log_density"] > sds["log_density"] + 20


def test_the_variance_is_that_of_an_independent_estimate():
    few, many = (measured("variance", steps=steps).numbers for steps in (2000, 8000))
    assert few["over_noise"] == pytest.approx(many["over_noise"], rel=0.15)
    # One point: x̂_0 does not depend on ε.
    assert measured("variance", "sdi", steps=50).numbers["over_t"] < 1e-3


def test_the_study_writes_its_table_and_picture(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    only = ("conformance_sds", "modes_sds", "particles_cfd", "variance_sds")
    selection = Selection(str(SHIPPED), preset="quick", only=only)
    run(selection, Overrides(out=str(out), steps=20))
    rows = pd.read_csv(out / "objectives.csv")
    assert set(rows.panel) == {"conformance", "modes", "particles", "variance"}
    assert list(rows[rows.panel == "modes"].K) == [1, 2, 16, 256]
    text = (out / "objectives.md").read_text()
    for heading in ("## conformance", "## modes", "## particles", "## variance", "K = 256"):
        assert heading in text
    assert (out / "objectives.png").stat().st_size > 10_000
    record = json.loads((out / "objectives" / "run.json").read_text())
    assert record["kind"] == "objectives"
    assert "Results" in (out / "objectives" / "report.html").read_text()


def test_the_shipped_study_is_whole():
    assert study_kind(SHIPPED) == "objectives"
    study = load_study(SHIPPED, "quick")
    names = {case.objective for case in study.cases if case.panel == "conformance"}
    assert len(names) == 12
    assert all(case.why for case in study.cases if case.panel == "conformance")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('panel = "modes"\nobjective = "vds"\ncounts = [2]', "objective must be one of sds, csd"),
        ('panel = "modes"\nobjective = "ode"\ncounts = [2]', "objective must be one of sds, csd"),
        ('panel = "modes"', "counts must be given for modes, from 1 up, and only so, got"),
        ('panel = "variance"\ncounts = [2]', "counts must be given for modes"),
        ('panel = "modes"\ncounts = [0]', "from 1 up"),
        ('panel = "modes"\nobjective = "csd"\ncounts = [2]', "modes has one model, and csd needs"),
        ('panel = "variance"\nobjective = "nfsd"', "variance has one model, and nfsd needs"),
        ('panel = "particles"\ntimesteps = [500, 20]', "two numbers from 0 to 1000, the lower one"),
        ('panel = "particles"\ntimesteps = [20, 2000]', "two numbers from 0 to 1000"),
        ('panel = "colours"', "panel"),
    ],
)
def test_cases_that_make_no_sense_are_refused(tmp_path: Path, line: str, message: str):
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "t"\nkind = "objectives"\n[settings]\n'
        f'[[cases]]\nname = "a"\nlabel = "a"\n{line}\n'
    )
    with pytest.raises(UserError, match=message):
        load_study(path)


def test_a_gpu_is_refused_for_what_computes_on_the_cpu():
    with pytest.raises(UserError, match="computes on the CPU, got device cuda:0"):
        Objectives(load_study(SHIPPED), (), torch.device("cuda:0"))
