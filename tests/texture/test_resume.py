"""A texture run that was stopped goes on, from anywhere, and ends as if nothing had happened."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from sdslab.denoisers.pipelines import PipelineSource
from sdslab.runs.record import run_record
from sdslab.texture import exemplar, resolved_arguments, workspace
from sdslab.texture.arguments import Arguments
from tests.conftest import random_image
from tests.texture_runs import SMALL, after_steps, assert_same_maps, interrupt, saved_steps, texture
from tests.tiny_pipelines import save_deepfloyd_one, save_deepfloyd_two

TARGET = ("torus", "--target", "coffee", "--unlit", "--steps=6", *SMALL)
DIP = (*TARGET, "--parameterization=dip", "--texture-size=64", "--freeze=metallic")
EXEMPLAR = ("sphere", "--exemplar", "gravel", "--steps=3", *SMALL, "--texture-size=64")
PROMPT = ("sphere", "--prompt", "a cow", "--light", "white", "--steps=3", "--sr-steps=3", *SMALL)
SECTIONS = [field.name for field in dataclasses.fields(Arguments)]
PHOTO = Path(__file__).parents[2] / "figures" / "figure2.png"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("models")
    one, two = save_deepfloyd_one(folder / "if-1"), save_deepfloyd_two(folder / "if-2")
    return "--model", str(one), "--sr-model", str(two)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def record_of(config: dict[str, Any]) -> str:
    """A ``run.json`` that is whole but for its config."""
    return json.dumps(run_record(config, torch.device("cpu"), program="texture", kind="degenerate"))


def stopped(monkeypatch: pytest.MonkeyPatch, at: int, *arguments: str) -> None:
    with after_steps(monkeypatch, at, interrupt):
        assert texture(monkeypatch, *arguments) == 130


def ends_alike(monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...], *arguments: str) -> None:
    assert texture(monkeypatch, *arguments, "--out=whole") == 0
    for stop in stops:
        stopped(monkeypatch, stop, *arguments, "--out=stopped")
    assert texture(monkeypatch, *arguments, "--out=stopped") == 0
    assert_same_maps(Path("whole"), Path("stopped"))
    logs = [pd.read_csv(Path(run) / "metrics.csv") for run in ("whole", "stopped")]
    assert logs[0].drop(columns="seconds").equals(logs[1].drop(columns="seconds"))


@pytest.mark.parametrize("arguments", [TARGET, DIP], ids=["texels", "dip"])
def test_a_recovery_ends_bit_for_bit_alike(arguments: tuple[str, ...], monkeypatch):
    ends_alike(monkeypatch, (2, 3), *arguments)


def test_both_stages_of_an_exemplar_end_bit_for_bit_alike(monkeypatch):
    ends_alike(monkeypatch, (2, 4, 2), *EXEMPLAR, "--stage-two=sr-sds")


def test_an_exemplar_s_mode_is_made_anew_from_stage_one_after_ctrl_c(monkeypatch, capsys):
    from sdslab.exemplar_texturing.mode_stage import mode_texture

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    assert texture(monkeypatch, *EXEMPLAR, "--out=whole") == 0
    monkeypatch.setattr(exemplar, "mode_texture", interrupted)
    assert texture(monkeypatch, *EXEMPLAR, "--out=stopped") == 130
    assert "interrupted in stage II; stage I's result is saved" in capsys.readouterr().err
    assert Path("stopped/mesh.glb").read_bytes().startswith(b"glTF")
    monkeypatch.setattr(exemplar, "mode_texture", mode_texture)
    assert texture(monkeypatch, "--resume=stopped") == 0
    assert_same_maps(Path("whole"), Path("stopped"))
    results = json.loads(Path("stopped/run.json").read_text())["metrics"]
    assert "mode_seconds" in results


def test_both_stages_of_a_prompt_end_bit_for_bit_alike(models: tuple[str, ...], monkeypatch):
    ends_alike(monkeypatch, (2, 4), *PROMPT, *models)


def test_a_run_goes_on_from_anywhere_with_its_own_settings(tmp_path: Path, monkeypatch):
    """Paths in its arguments are those of the folder that it was started in."""
    Path("work").mkdir()
    monkeypatch.chdir("work")
    picture = random_image(1, 3, 64, 64)[0].movedim(0, -1)
    Image.fromarray((255 * picture).byte().numpy()).save("moss.png")
    arguments = ("torus", "--target", "moss.png", "--unlit", "--steps=5", "--seed=3", *SMALL)
    assert texture(monkeypatch, *arguments, "--out=whole") == 0
    stopped(monkeypatch, 3, *arguments, "--out=run")
    first = json.loads(Path("run/run.json").read_text())
    monkeypatch.chdir("/")
    run = tmp_path / "work" / "run"
    given = ("--resume", str(run), "--checkpoint-every=5", "--turntable=2", "--device=cpu")
    assert texture(monkeypatch, *given) == 0
    assert_same_maps(run, tmp_path / "work" / "whole")
    record = json.loads((run / "run.json").read_text())
    assert record["config"]["optimization"] == first["config"]["optimization"]
    assert record["config"]["output"]["checkpoint_every"] == 5
    assert list(run.glob("turntable.*"))
    assert record["command"] == first["command"]
    assert texture(monkeypatch, "--resume", str(run)) == 0  # it is finished: nothing is done


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--seed=0",), "seed 3 there, 0 here"),
        (("--steps=7",), "steps 6 there, 7 here"),
        (("apple",), "mesh torus there, apple here"),
        (("--light=studio",), r"light ['studio', 'sky'] there, ['studio'] here"),
        (("--fresh",), "--resume and --fresh exclude each other"),
        (("--out=other",), "goes on in the run's own folder"),
    ],
)
def test_what_would_change_its_result_is_refused(
    given: tuple[str, ...], message: str, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    arguments = ("torus", "--target", "coffee", "--steps=6", "--seed=3", "--fixed-light", *SMALL)
    stopped(monkeypatch, 2, *arguments, "--out=run")
    capsys.readouterr()
    assert texture(monkeypatch, "--resume=run", *given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert saved_steps(Path("run")) == ("recovery", 1)


def test_what_cannot_be_resumed_is_refused_in_one_line(
    monkeypatch, capsys: pytest.CaptureFixture[str]
):
    Path("empty").mkdir()
    Path("state.ckpt").write_bytes(b"\x80\4]")
    Path("odd").mkdir()
    records = {
        "text": "no JSON",
        "list": "[]",
        "other": record_of({"settings": {"size": 3}}),
        "half": record_of({"optimization": {"steps": 3}}),
        "type": record_of({name: {} for name in SECTIONS} | {"subject": {"mesh": 3}}),
    }
    for name, text in records.items():
        Path(name).mkdir()
        (Path(name) / "run.json").write_text(text)
    for name, message in {
        "nowhere": "must be a run's folder",
        "empty": "run.json",
        "state.ckpt": "convert it: python",
        "text": "run.json",
        "list": "run.json",
        "other": "config must hold 'subject'",
        "half": "config must hold 'subject'",
        "type": "mesh must be str",
    }.items():
        assert texture(monkeypatch, "--resume", name) == 2, name
        error = capsys.readouterr().err
        assert message in error, name
        assert len(error.splitlines()) == 1, name


def test_an_edited_input_is_another_run(monkeypatch, capsys: pytest.CaptureFixture[str]):
    """The files that an OBJ names count as well, for --init source takes its maps from them."""
    shutil.copyfile(PHOTO, "moss.png")
    assert texture(monkeypatch, "torus", "--target=coffee", "--steps=1", *SMALL, "--out=mesh") == 0
    for file in Path("mesh/obj").iterdir():
        shutil.copyfile(file, "paint.png" if file.name == "albedo.png" else file.name)
    material = Path("mesh.mtl")
    material.write_text(material.read_text().replace("albedo.png", "paint.png"))
    arguments = ("mesh.obj", "--target=moss.png", "--init=source", "--unlit", "--steps=6", *SMALL)
    stopped(monkeypatch, 2, *arguments, "--out=run")
    for name in ("moss.png", "mesh.obj", "mesh.mtl", "paint.png"):
        before = Path(name).read_bytes()
        Path(name).write_bytes(before + b"\n")
        capsys.readouterr()
        for given in ((*arguments, "--out=run"), ("--resume=run",)):
            assert texture(monkeypatch, *given) == 2
            named = name if name == "moss.png" else "mesh.obj"
            assert f"({named} has changed since)" in capsys.readouterr().err
        Path(name).write_bytes(before)
    assert texture(monkeypatch, *arguments, "--out=run") == 0


def test_options_of_memory_may_change(models: tuple[str, ...], monkeypatch):
    """They are what an out-of-memory error advises."""
    stopped(monkeypatch, 2, *PROMPT, *models, "--out=run")
    assert texture(monkeypatch, "--resume=run", "--low-memory") == 0


def test_a_second_process_is_refused(monkeypatch, capsys: pytest.CaptureFixture[str]):
    stopped(monkeypatch, 2, *TARGET, "--out=run")
    capsys.readouterr()

    def run_again(_: object) -> None:
        assert texture(monkeypatch, *TARGET, "--out=run") == 2
        error = capsys.readouterr().err
        assert "must be used by one process at a time" in error
        assert f"process {os.getpid()}" in error

    with after_steps(monkeypatch, 2, run_again):
        assert texture(monkeypatch, *TARGET, "--out=run") == 0


def other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an upgrade changes."""
    digests, version = workspace.code_digests, workspace.run_record

    def upgraded(*values: Any, **options: Any) -> dict[str, Any]:
        record = version(*values, **options)
        record["packages"]["numba"] = "9.9"
        return {**record, "sdslab": "9.0", "commit": "f" * 40, "dirty": False}

    monkeypatch.setattr(workspace, "code_digests", lambda w: {**digests(w), "kernels": "other"})
    monkeypatch.setattr(workspace, "run_record", upgraded)


def test_a_run_of_another_version_goes_on_where_that_is_accepted(
    monkeypatch, capsys: pytest.CaptureFixture[str]
):
    stopped(monkeypatch, 2, *TARGET, "--out=run")
    before = json.loads(Path("run/run.json").read_text())
    other_code(monkeypatch)
    for command in ((*TARGET, "--out=run"), ("--resume=run",)):
        capsys.readouterr()
        assert texture(monkeypatch, *command) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"was begun by sdslab {before['sdslab']} (commit {before['commit'][:10]}" in error
        assert "this is sdslab 9.0 (commit ffffffffff), which differs in sdslab/kernels" in error
        assert f"numba {before['packages']['numba']} → 9.9" in error
        assert "--accept-code-change goes on, --fresh starts over" in error
        assert saved_steps(Path("run")) == ("recovery", 1)
    stopped(monkeypatch, 2, "--resume=run", "--accept-code-change")
    assert "goes on with other code: sdslab/kernels, numba" in capsys.readouterr().err
    assert texture(monkeypatch, "--resume=run") == 0  # the new code's own checkpoint by now
    (change,) = json.loads(Path("run/run.json").read_text())["details"]["code_changes"]
    assert change["from"].startswith(f"sdslab {before['sdslab']} (commit {before['commit'][:10]}")
    assert change["to"] == "sdslab 9.0 (commit ffffffffff)"
    assert change["changed"][0] == "sdslab/kernels"


def test_code_that_no_result_depends_on_may_change(monkeypatch):
    stopped(monkeypatch, 2, *TARGET, "--out=run")
    digests = workspace.code_digests
    assert {"report", "study"} <= digests().keys()
    assert not {"report", "study"} & digests(workspace.WITHOUT_EFFECT).keys()


def test_a_record_says_what_ran_with_every_default(monkeypatch):
    """And a resumed run, or the same command, keeps to it when a default has changed since."""
    command = ("torus", "--target=coffee", "--out=run", *SMALL)
    stopped(monkeypatch, 2, *command)
    config = json.loads(Path("run/run.json").read_text())["config"]
    assert config["subject"]["guidance"] == "degenerate"
    assert config["subject"]["init"] == "grey"
    assert config["optimization"]["steps"] == config["stages"]["recovery"]["steps"] == 300
    assert config["optimization"]["learning_rate"] == 0.025
    assert config["rendering"]["light"] == ["studio", "sky"]
    assert (config["rendering"]["render_size"], config["rendering"]["renderer"]) == (32, "cpu")
    assert config["output"]["device"] == "cpu"
    assert not {"model", "distillation", "exemplar"} & config.keys()
    changed = dataclasses.replace(resolved_arguments.RECOVERY, steps=200)
    monkeypatch.setattr(resolved_arguments, "RECOVERY", changed)
    assert texture(monkeypatch, *command) == 2
    stopped(monkeypatch, 2, "--resume=run")
    again = json.loads(Path("run/run.json").read_text())["config"]
    assert Path(again["output"].pop("out")).samefile(config["output"].pop("out"))
    assert again == config


def test_an_exemplar_s_record_has_its_levels_and_no_model(monkeypatch):
    assert texture(monkeypatch, "sphere", "--steps=1", "--out=run", *EXEMPLAR[4:]) == 0
    record = json.loads(Path("run/run.json").read_text())
    assert record["config"]["subject"]["exemplar"] == ["gravel"]
    assert record["config"]["optimization"]["views"] == 2
    stages = record["config"]["stages"]
    assert stages.pop("stage2") == {"passes": 14}
    assert {stage["steps"] for stage in stages.values()} == {1}
    assert not {"model", "distillation"} & record["config"].keys()


def test_a_model_that_was_updated_on_the_hub_is_another_run(
    models: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    """A snapshot on the hub lies in a folder named by its commit."""
    commits = ["first"]

    def downloaded(source: PipelineSource, *_: object) -> Path:
        place = tmp_path / source.name.replace("/", "-") / commits[-1]
        if not place.exists():
            shutil.copytree(models[1] if source.name == "org/one" else models[3], place)
        return place

    monkeypatch.setattr(PipelineSource, "_download", downloaded)
    line = (*PROMPT, "--model", "org/one", "--sr-model", "org/two", "--out=run")
    stopped(monkeypatch, 2, *line)
    commits.append("second")
    capsys.readouterr()
    assert texture(monkeypatch, *line) == 2
    assert "org/one has changed since" in capsys.readouterr().err
    commits.append("first")
    assert texture(monkeypatch, *line) == 0
