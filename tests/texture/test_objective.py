"""``--objective``: the objectives of the table lead stage I on tiny models of real block types."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdslab.distillation.objectives import OBJECTIVES
from sdslab.errors import UserError
from sdslab.texture import objective as module
from sdslab.texture.arguments import (
    Arguments,
    Distillation,
    Exemplar,
    Model,
    Optimization,
    Output,
    Rendering,
    Subject,
)
from sdslab.texture.objective import NAMES, check_objective
from sdslab.texture.runner import run
from tests.texture_runs import SMALL, after_steps, interrupt, texture

pytestmark = pytest.mark.usefixtures("own_cache")


def arguments(out: Path, model: Path, name: str, **options: Any) -> Arguments:
    distillation = {key: options.pop(key) for key in list(options) if hasattr(Distillation, key)}
    return Arguments(
        Subject(mesh="sphere", prompt="a cow in a suit"),
        Exemplar(),
        Model(model=str(model), sr_model="none", **options),
        Distillation(objective=name, **distillation),
        Optimization(texture_size=32, steps=2, views=2),
        Rendering(render_size=32, light=("white",)),
        Output(out=str(out), turntable=0, picture_size=32, preview_every=0, device="cpu"),
    )


FAST = ("csd", "nfsd", "sdi")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in NAMES]
)
def test_each_objective_textures_a_mesh(pipelines: Path, tmp_path: Path, name: str, monkeypatch):
    asked = []
    gradient = module.distillation_gradient

    def watched(z, objective, predictors, t, noise, **options: Any):
        asked.append((objective, predictors, t, options))
        return gradient(z, objective, predictors, t, noise, **options)

    monkeypatch.setattr(module, "distillation_gradient", watched)
    model = "sd" if name in ("csd", "ism") else "if-1"
    negative = "blurry" if "negative" in OBJECTIVES[name].needs else ""
    run(arguments(tmp_path / "run", pipelines / model, name, negative_prompt=negative))
    assert (tmp_path / "run" / "mesh.glb").exists()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    stage = record["config"]["stages"]["stage1"]
    assert stage["objective"] == record["config"]["distillation"]["objective"] == name
    if name == "sds":
        assert not asked
        return
    assert stage["guidance_scale"] == OBJECTIVES[name].guidance
    assert stage["weighting"] == OBJECTIVES[name].weighting
    assert [options["progress"] for _, _, _, options in asked] == [0.0, 0.5]
    for step, (objective, predictors, t, _) in enumerate(asked):
        assert objective == name
        low, high = OBJECTIVES[name].timesteps.bounds(step / 2)
        assert low <= t.min()
        assert t.max() < high
        rows = {role: each.condition.prompt for role, each in predictors.items()}
        assert set(rows["conditional"].tolist()) <= set(range(5))
        assert rows["unconditional"].tolist() == [6 if negative else 5] * 2
        if negative:
            assert rows["negative"].tolist() == [5] * 2


def test_options_say_more_than_the_objective(pipelines: Path, tmp_path: Path):
    run(
        arguments(
            tmp_path / "run",
            pipelines / "if-1",
            "hifa",
            guidance_scale=7.0,
            weighting="x0_castex",
            timesteps=(100, 200),
            low_memory=True,
        )
    )
    stage = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["stages"]["stage1"]
    assert (stage["guidance_scale"], stage["weighting"]) == (7.0, "x0_castex")
    assert stage["timesteps"] == {"kind": "UniformTimesteps", "t_min": 100, "t_max": 200}


def test_roles_one_after_the_other_are_the_same_run(pipelines: Path, tmp_path: Path):
    maps = []
    for low_memory in (False, True):
        out = tmp_path / str(low_memory)
        given = arguments(
            out, pipelines / "if-1", "nfsd", negative_prompt="x", low_memory=low_memory
        )
        run(replace(given, optimization=replace(given.optimization, steps=1)))
        maps.append((out / "maps" / "albedo.png").read_bytes())
    assert maps[0] == maps[1]


def test_a_function_of_one_s_own_leads(pipelines: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import sdslab\n"
        "def halved(z, denoiser, t, noise, **options):\n"
        "    result = sdslab.sds_gradient(z, denoiser, t, noise, **options)\n"
        "    return result._replace(gradient=result.gradient / 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run(arguments(tmp_path / "own", pipelines / "if-1", "mine:halved"))
    run(arguments(tmp_path / "sds", pipelines / "if-1", "sds"))
    norms = [
        float((tmp_path / name / "metrics.csv").read_text().splitlines()[1].split(",")[3])
        for name in ("own", "sds")
    ]
    assert norms[0] == pytest.approx(norms[1] / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vds", {}, r"--objective must be one of sds, csd, .*rfds_rev, or MODULE:NAME, got 'vds'"),
        ("vsd", {}, "--objective must be one of"),
        ("cfd", {}, "--objective must be one of"),
        ("nfsd", {}, r"--objective nfsd needs --negative-prompt.*got none"),
        ("csd", {"perp_neg": 1.0}, "--perp-neg is for --objective sds, got csd"),
        ("csd", {"x0_bound": "clamp"}, "--x0-bound is for --objective sds, got csd"),
        ("csd", {"graph": True}, "--graph is for --objective sds, got csd"),
        ("nowhere_at_all:f", {}, "nowhere_at_all"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, name: str, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        check_objective(arguments(tmp_path, tmp_path, name, **options))


def test_it_is_for_prompts(tmp_path: Path):
    given = arguments(tmp_path / "run", tmp_path, "csd")
    given = replace(given, subject=Subject(exemplar=("gravel",)), model=Model())
    with pytest.raises(UserError, match="--objective is for --prompt, got --guidance exemplar"):
        run(given)


def test_no_record_names_an_objective_that_runs(
    pipelines: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("own_sds.py").write_text("from sdslab import sds_gradient as own\n")
    model, own = f"--model={pipelines / 'if-1'}", "--objective=own_sds:own"
    options = ("sphere", "--prompt=x", model, "--sr-model=none", "--unlit", "--steps=4", *SMALL)
    with after_steps(monkeypatch, 2, interrupt):
        assert texture(monkeypatch, *options, own, "--out=run") == 130
    record = Path("run/run.json")
    assert "own_sds.py" in json.loads(record.read_text())["details"]["inputs"]
    assert texture(monkeypatch, "--resume=run") == 2
    assert "if you trust it, add --objective own_sds:own" in capsys.readouterr().err
    Path("evil.py").write_text("open('ran', 'w')")
    kept = record.read_text()
    record.write_text(kept.replace("own_sds:own", "evil:own"))
    assert texture(monkeypatch, "--resume=run") == 2
    assert not Path("ran").exists()
    record.write_text(kept)
    assert texture(monkeypatch, "--resume=run", own) == 0


def test_an_objective_that_is_no_function_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="objective must name a function, got a str, os:name"):
        check_objective(arguments(tmp_path, tmp_path, "os:name"))
