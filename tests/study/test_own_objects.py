"""``MODULE:NAME`` in a study: parts of the user's own."""

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from sdslab.errors import UserError
from sdslab.study.__main__ import Overrides, Selection, run
from sdslab.study.own_objects import OBJECTIVE_NAMES

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.usefixtures("undrawn", "here")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the example's files, in which the study is run."""
    for name in ("own_study.py", "own_study.toml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_study", raising=False)


def run_example(
    *only: str, steps: int | None = None, size: int | None = None, resume: str | None = None
) -> None:
    study = None if resume else "own_study.toml"
    out = None if resume else "own_study"
    run(Selection(study, only=only, resume=resume), Overrides(out=out, steps=steps, size=size))


def test_the_example_shows_what_it_says():
    run_example(size=32)
    psnr = pd.read_csv("own_study/own_study.csv").set_index("cell").psnr_db
    assert psnr.spectrum > 60
    assert psnr.pixels_antithetic > 140  # the noise is gone: float32's floor
    assert 30 < psnr.pixels_plain < 60  # it is not


def test_finished_cells_are_kept_until_the_module_changes():
    out = Path("own_study")

    def saved() -> dict[str, int]:
        folder = out / "own_study" / "cells"
        return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    run_example("spectrum", steps=3)
    first = saved()
    run_example("spectrum", steps=3)
    assert saved() == first
    with Path("own_study.py").open("a") as file:
        file.write("# changed\n")
    run_example("spectrum", steps=3)
    assert len(saved()) == 2


@pytest.mark.parametrize("name", OBJECTIVE_NAMES)
def test_each_objective_of_the_table_serves_a_cell(name: str):
    """With Eq. 3 all end at x*, but for ISM, whose gradient is 0 everywhere."""
    text = Path("own_study.toml").read_text()
    Path("own_study.toml").write_text(
        f'{text}\n[[cells]]\nname = "named"\nlabel = "named"\ndiffusion = "pixel"\n'
        f'parameterization = "pixel"\ninitialization = "grey"\nnoise = "sampled"\n'
        f'objective = "{name}"\noptimization = {{ optimizer = "sgd", learning_rate = 0.1, '
        f"steps = 300 }}\n"
    )
    run_example("named", size=64)
    psnr = pd.read_csv("own_study/own_study.csv").set_index("cell").psnr_db["named"]
    assert (psnr < 20) if name == "ism" else (psnr > 100)


def test_resume_runs_no_code_that_a_record_names():
    run_example("spectrum", steps=3)
    with pytest.raises(UserError, match=r"without MODULE:NAME.*give its \.toml again"):
        run_example(resume="own_study/own_study")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("own_study:antithetic_sds", "csd", "must be one of sds, vsd, .*, or MODULE:NAME"),
        ("own_study:spectrum", "own_study:nothing", "own_study has .*Spectrum"),
        ("own_study:spectrum", "no_such_module:spectrum", "No module named 'no_such_module'"),
        ("own_study:spectrum", "spectrum", "must be one of pixel, dip, latent, or MODULE:NAME"),
        ("own_study:spectrum", "own_study:DEVIATION", "must name a function or class"),
        ("own_study:spectrum", "own_study:NormalAround", "a Parameterization with parameters"),
        ("own_study:NormalAround", "own_study:spectrum", "derive a class from Denoiser"),
        ("return SDSResult(gradient", "return (gradient", "must give an SDSResult .* a tuple"),
        ("return Spectrum(setup.image)", "return Spectrum", "with parameters, got ABCMeta"),
        ("return 0.5 + ", "return 0.5, ", "of shape .*, got a tuple"),
        ('noise = "sampled"', "", "noise must be 'sampled' where the denoiser"),
        ("s=self.size", "s=(8, 8)", r"of shape \[1, 3, 64, 64\], got \[1, 3, 8, 8\]"),
    ],
)
def test_what_is_no_part_of_a_study_is_refused(before: str, after: str, message: str):
    for path in Path().glob("own_study.*"):
        path.write_text(path.read_text("utf-8").replace(before, after), "utf-8")
    with pytest.raises(UserError, match=message):
        run_example(steps=2)
