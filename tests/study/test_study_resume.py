"""Cells that are finished are kept, used again only where they are right, and gone on from."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import load_file

from sdslab.study.__main__ import Overrides, Selection, run
from tests.study.conftest import cells_of

pytestmark = pytest.mark.usefixtures("undrawn")


def test_running_again_does_only_what_is_missing(study: Path, tmp_path: Path):
    out = tmp_path / "figures"
    selection, overrides = Selection(str(study)), Overrides(out=str(out))
    run(selection, overrides)
    first, table = cells_of(out), (out / "small.csv").read_bytes()
    removed = next(name for name in first if name.startswith("latent_rgb-coffee"))
    (out / "small" / "cells" / removed).unlink()
    run(selection, overrides)
    second = cells_of(out)
    seconds = json.loads((out / "small" / "run.json").read_text())["seconds"]
    cells = sum(v for name, v in seconds.items() if name not in ("total", "last_process"))
    if "last_process" in seconds:
        assert seconds["total"] == pytest.approx(cells, abs=0.01)
        assert seconds["last_process"] < seconds["total"]
    else:  # loading alone took longer than the cells
        assert seconds["total"] >= round(cells, 2)
    assert {name for name in first if first[name] != second[name]} == {removed}
    before, after = (
        pd.read_csv(file).drop(columns="seconds")
        for file in (out / "small.csv", _written(tmp_path / "table.csv", table))
    )
    pd.testing.assert_frame_equal(before, after)

    run(Selection(str(study), fresh=True), overrides)
    third = cells_of(out)
    assert third.keys() == second.keys()
    assert all(third[name] != second[name] for name in second)


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_changed_configuration_never_reuses_old_cells(study: Path, tmp_path: Path):
    out = tmp_path / "figures"
    selection = Selection(str(study), only=("pixel_rgb",))
    run(selection, Overrides(out=str(out), image=("chelsea",)))
    for changed in (
        Overrides(out=str(out), image=("chelsea",), steps=21),
        Overrides(out=str(out), image=("chelsea",), seeds=(1,)),
        Overrides(out=str(out), image=("chelsea",), size=96),
        Overrides(out=str(out), image=("chelsea",), dtype="float64"),
        Overrides(out=str(out), image=("rocket",)),
    ):
        before = cells_of(out)
        run(selection, changed)
        assert len(cells_of(out)) == len(before) + 1


def test_pixel_cells_survive_another_vae_and_latent_cells_do_not(study: Path, tmp_path: Path):
    out = tmp_path / "figures"
    only = ("pixel_rgb", "latent_rgb")
    run(Selection(str(study), only=only), Overrides(out=str(out), image=("chelsea",)))
    before = cells_of(out)
    run(
        Selection(str(study), only=only),
        Overrides(out=str(out), image=("chelsea",), vae="shipped"),
    )
    new = set(cells_of(out)) - set(before)
    assert [name.split("-")[0] for name in new] == ["latent_rgb"]


def test_other_code_never_reuses_old_cells(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "figures"
    selection = Selection(str(study), only=("pixel_rgb",))
    overrides = Overrides(out=str(out), image=("chelsea",))
    run(selection, overrides)
    other, changed = ({"code": {"kernels": text}, "versions": {}} for text in ("a", "b"))
    monkeypatch.setattr("sdslab.study.engine.code_of", lambda *_, **__: other)
    run(selection, overrides)
    assert len(cells_of(out)) == 2
    monkeypatch.setattr("sdslab.study.engine.code_of", lambda *_, **__: changed)
    run(dataclasses.replace(selection, accept_code_change=True), overrides)
    assert len(cells_of(out)) == 2
    record = json.loads((out / "small" / "run.json").read_text())
    assert record["details"]["code_changes"] == ["sdslab/kernels"]


def test_an_interrupted_study_goes_on_where_it_was(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from sdslab.study import reconstruct

    out = tmp_path / "figures"
    real, runs = reconstruct.run_cell, []

    def interrupted_at_the_third(cell, problem, seed, progress):
        runs.append(cell.name)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return real(cell, problem, seed, progress)

    monkeypatch.setattr(reconstruct, "run_cell", interrupted_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(Selection(str(study)), Overrides(out=str(out)))
    assert len(cells_of(out)) == 2
    run(Selection(str(study)), Overrides(out=str(out)))
    assert len(runs) == 3 + 4
    assert len(cells_of(out)) == 6


def test_an_interrupted_cell_goes_on_at_its_step(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    from sdslab.study import reconstruct

    real, started_at = reconstruct.run_cell, []

    def interrupted(cell, problem, seed, progress):
        started_at.append(progress.loop.index)
        for number, update in enumerate(real(cell, problem, seed, progress)):
            yield update
            if len(started_at) == 1 and number == 7:
                raise KeyboardInterrupt

    def images(out: str) -> list[np.ndarray]:
        cells = sorted((tmp_path / out / study.stem / "cells").iterdir())
        return [load_file(path)["theta"] for path in cells]

    monkeypatch.setattr(reconstruct, "run_cell", interrupted)
    first = Selection(str(study), only=("pixel_rgb",))
    with pytest.raises(KeyboardInterrupt):
        run(first, Overrides(out=str(tmp_path / "out")))
    assert len(list(tmp_path.glob("out/*/cells/*/checkpoint-*"))) == 1
    run(first, Overrides(out=str(tmp_path / "out")))
    assert started_at == [0, 7, 0]
    assert ": goes on at step 7\n" in capsys.readouterr().err
    run(first, Overrides(out=str(tmp_path / "straight")))
    assert len(images("out")) == 2
    for resumed, straight in zip(images("out"), images("straight"), strict=True):
        assert np.array_equal(resumed, straight)


def resume(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """The exit code of ``--resume``, None if it ran to its end."""
    from sdslab.study.__main__ import main

    monkeypatch.setattr(sys, "argv", ["sdslab.study", "--resume", *arguments])
    try:
        return main()
    except SystemExit as ended:
        return ended.code


def test_a_study_is_resumed_from_anywhere(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from sdslab.study import reconstruct

    real, runs = reconstruct.run_cell, []

    def interrupted_at_the_second(cell, problem, seed, progress):
        runs.append((cell.name, cell.optimization))
        if len(runs) == 2:
            raise KeyboardInterrupt
        return real(cell, problem, seed, progress)

    monkeypatch.setattr(reconstruct, "run_cell", interrupted_at_the_second)
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    only = ("pixel_rgb", "latent_dip")
    with pytest.raises(KeyboardInterrupt):
        run(Selection(str(study), only=only), Overrides(image=("photo.png",), out="results"))
    monkeypatch.chdir(elsewhere)
    assert resume(monkeypatch, "../results/small") is None
    assert [name for name, _ in runs] == ["pixel_rgb", "latent_dip", "latent_dip"]
    assert runs[1] == runs[2]  # infinite limits of gradients, too
    assert not list(elsewhere.iterdir())
    table = pd.read_csv(tmp_path / "results" / "small.csv")
    assert list(table["cell"].unique()) == list(only)


def test_what_cannot_be_resumed_says_why(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    tmp_path /= "figures"
    run(Selection(str(study), only=("pixel_rgb",)), Overrides(image=("coffee",), out=str(tmp_path)))
    done = tmp_path / "small"
    record = json.loads((done / "run.json").read_text("utf-8"))
    for program, kind in (("study", "kernels"), ("texture", "exemplar")):
        (tmp_path / kind).mkdir()
        changed = json.dumps({**record, "program": program, "kind": kind})
        (tmp_path / kind / "run.json").write_text(changed, "utf-8")
    done.rename(tmp_path / "moved")
    capsys.readouterr()
    refused = {
        ("nowhere",): "--resume must be a run's folder",
        (
            str(tmp_path / "moved"),
            "--steps",
            "3",
        ): "takes --threads and --accept-code-change alone, got --steps",
        (
            str(tmp_path / "moved"),
            "figure2",
        ): "takes --threads and --accept-code-change alone, got STUDY",
        (str(tmp_path / "moved"),): "must have its folder's name, 'moved', got 'small'",
        (str(tmp_path / "kernels"),): "is for studies whose finished rows are kept",
        (str(tmp_path / "exemplar"),): "give it to python -m sdslab.texture instead",
    }
    for arguments, message in refused.items():
        assert resume(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1
        assert message in error[0]


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("config", "cells", "x/../../../escaped", "a name must be lower-case letters, digits"),
        ("details", "only", 5, "details.only must be a list of names, got 5"),
        ("details", "only", "pixel_rgb", "details.only must be a list of names"),
        ("config", "colour", 1, "config: valid keys are name, title"),
    ],
)
def test_a_record_from_elsewhere_writes_nowhere_else(
    section: str,
    key: str,
    value: object,
    message: str,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "out"
    run(Selection(str(study), only=("pixel_rgb",)), Overrides(image=("coffee",), out=str(out)))
    record = json.loads((out / "small" / "run.json").read_text("utf-8"))
    record["details"]["only"] = []
    if key == "cells":
        record["config"]["cells"][0]["name"] = value
    else:
        record[section][key] = value
    (out / "small" / "run.json").write_text(json.dumps(record), "utf-8")
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert resume(monkeypatch, str(out / "small")) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
