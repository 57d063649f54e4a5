"""``--guidance MODULE:NAME``: the examples, and what becomes of a module that is none."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from sdslab.meshes.material import ALBEDO, load_maps
from sdslab.runs.schema import read_run
from tests.texture_runs import (
    SMALL,
    after_steps,
    assert_same_maps,
    interrupt,
    saved_tensors,
    texture,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
OWN = """
import torch
from sdslab import PixelGrid, Prediction
def small(setup): return PixelGrid(torch.zeros(1, 3, 4, 4))
def nothing(setup): return None
def a_class(setup): return dict
class NoDenoiser: pass
number = 3
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for example in EXAMPLES.glob("*.py"):
        shutil.copy(example, tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("own_denoiser", "own_guide", "own"):
        monkeypatch.delitem(sys.modules, module, raising=False)


def test_a_denoiser_of_ones_own_leads_to_its_mean(monkeypatch: pytest.MonkeyPatch):
    from examples.own_denoiser import COLOUR

    options = ("--unlit", "--steps=60", "--exr", *SMALL)
    assert texture(monkeypatch, "sphere", "--guidance=own_denoiser:terracotta", *options) == 0
    run = Path("runs/sphere-terracotta")
    albedo = load_maps(run / "maps")[..., ALBEDO]
    assert (albedo - torch.tensor(COLOUR)).abs().mean() < 0.04
    record = read_run(run / "run.json")
    assert record["kind"] == "own_denoiser:terracotta"
    assert record["config"]["stages"]["own"]["steps"] == 60
    assert "model" not in record["config"]
    assert "own_denoiser.py" in record["details"]["inputs"]
    assert (run / "report.html").is_file()


def test_a_run_by_a_guide_of_ones_own_goes_on_unless_its_module_has_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    options = ("sphere", "--guidance=own_guide:moss_and_stone", "--unlit", "--steps=4", *SMALL)
    assert texture(monkeypatch, *options, "--out=whole") == 0
    with after_steps(monkeypatch, 2, interrupt):
        assert texture(monkeypatch, *options, "--out=stopped") == 130
    module = Path("own_guide.py")
    content = module.read_text()
    module.write_text(content + "\n")
    assert texture(monkeypatch, *options, "--out=stopped") == 2
    assert "own_guide.py" in capsys.readouterr().err
    module.write_text(content)
    assert texture(monkeypatch, "--resume=stopped", "--guidance=own_guide:moss_and_stone") == 0
    assert_same_maps(Path("whole"), Path("stopped"))


def test_a_parameterization_of_ones_own_is_recovered_saved_and_gone_on_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    own = "--parameterization=own_denoiser:ripples"
    options = ("sphere", "--target=brick", own, "--unlit", "--steps=4", *SMALL)
    assert texture(monkeypatch, *options, "--out=whole") == 0
    with after_steps(monkeypatch, 2, interrupt):
        assert texture(monkeypatch, *options, "--out=stopped") == 130
    assert (8, 64) in {tuple(tensor.shape) for tensor in saved_tensors(Path("stopped")).values()}
    assert texture(monkeypatch, "--resume=stopped") == 2
    assert "if you trust it, add --parameterization own_denoiser:ripples" in capsys.readouterr().err
    assert texture(monkeypatch, "--resume=stopped", own) == 0
    assert_same_maps(Path("whole"), Path("stopped"))
    assert "own_denoiser.py" in read_run(Path("whole/run.json"))["details"]["inputs"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own:nothing", "must give a Parameterization with parameters, got NoneType"),
        ("own:number", "own:number must be a function or class, got int"),
        ("own:small", r"of shape \[1, 8, \d+, \d+\], got \[1, 3, 4, 4\]"),
        ("texel", "must be one of texels, dip, or MODULE:NAME, got 'texel'"),
    ],
)
def test_what_is_no_parameterization_is_one_line(
    name: str, message: str, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    arguments = ("sphere", "--target=brick", f"--parameterization={name}", *SMALL)
    assert texture(monkeypatch, *arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0])


@pytest.mark.parametrize(
    ("option", "name", "before"),
    [
        ("guidance", "own_guide:moss_and_stone", ()),
        ("parameterization", "own_denoiser:ripples", ("--target=brick",)),
    ],
)
def test_no_record_names_code_that_runs(
    option: str, name: str, before: tuple[str, ...], monkeypatch, capsys: pytest.CaptureFixture[str]
):
    options = ("sphere", *before, f"--{option}={name}", "--unlit", "--steps=4", *SMALL)
    with after_steps(monkeypatch, 2, interrupt):
        assert texture(monkeypatch, *options, "--out=run") == 130
    Path("evil").mkdir()
    Path("evil", "__init__.py").write_text("open('ran', 'w')")
    Path("evil", "module.py").touch()
    record = Path("run/run.json")
    record.write_text(record.read_text().replace(name, "evil.module:guide"))
    assert texture(monkeypatch, "--resume=run") == 2
    assert f"if you trust it, add --{option} evil.module:guide" in capsys.readouterr().err
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("own:nothing",), "must return a Denoiser or a guide.* got a NoneType"),
        (("own:a_class",), "got a type"),
        (("own:number",), "got a int"),
        (("own:missing",), "own has .*nothing"),
        (("nowhere:guide",), "ModuleNotFoundError"),
        (("broken:guide",), "ZeroDivisionError"),
        (("exemplr",), "did you mean 'exemplar'"),
        (("own:nothing", "--target=brick"), "--target is not for --guidance own:nothing"),
        (("own:nothing", "--perp-neg=1"), "--perp-neg is for --prompt"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_what_is_no_guide_is_one_line(
    options: tuple[str, ...], message: str, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    before = set(Path().rglob("*"))
    arguments = ("sphere", f"--guidance={options[0]}", *options[1:], *SMALL)
    assert texture(monkeypatch, *arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert {path for path in Path().rglob("*") if "__pycache__" not in str(path)} == before
