"""The study of textured meshes, on tiny maps."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sdslab.errors import UserError
from sdslab.study.engine import run_study
from sdslab.study.exemplar_mesh import ExemplarMeshes, MeshStudy
from sdslab.study.study_file import find_study, load_study, study_kind

TINY = """
title = "tiny"
kind = "exemplar_mesh"

[settings]
meshes = ["apple"]
photos = ["gravel"]
seeds = [0, 1]
texture_size = 64
steps = 2
{settings}

[[methods]]
name = "all"
label = "stage I, then the mode"
method = "mode"

[[methods]]
name = "projected"
label = "triplanar"
method = "{method}"
"""


def tiny(folder: Path, settings: str = "", method: str = "triplanar") -> MeshStudy:
    path = folder / "tiny.toml"
    out = f'out = "{folder / "figures"}"\n'
    path.write_text(TINY.format(settings=out + settings, method=method))
    return load_study(path)


@pytest.mark.parametrize("preset", [None, "quick"])
def test_the_shipped_study_loads(preset: str | None):
    path = find_study("exemplar_mesh")
    assert study_kind(path) == "exemplar_mesh"
    study = load_study(path, preset)
    assert [method.name for method in study.methods] == [
        "mode", "two_stages", "stage_one", "triplanar", "plain_sds",
    ]  # fmt: skip
    assert len(study.settings.seeds) == (3 if preset is None else 1)


def test_a_study_writes_its_table_and_goes_on_from_what_is_saved(tmp_path: Path, capsys):
    study = tiny(tmp_path)
    run_study("exemplar_mesh", ExemplarMeshes, study)
    figures = tmp_path / "figures"
    rows: Any = pd.read_csv(figures / "tiny.csv")
    assert len(rows) == 4  # two methods, two seeds
    assert (rows["sliced_wasserstein"].dropna() > 0).all()
    assert rows["seam_jump"].notna().all()  # an apple has seams
    projected = rows[rows["method"] == "projected"]
    assert projected["contrast"].nunique() == 1  # it does not hang on the seed
    assert (figures / "tiny.png").exists()
    assert "± " in (figures / "tiny.md").read_text()
    first = json.loads((figures / "tiny.json").read_text())["rows"]
    capsys.readouterr()
    run_study("exemplar_mesh", ExemplarMeshes, study)
    assert capsys.readouterr().err.count("saved from before") == 4
    assert json.loads((figures / "tiny.json").read_text())["rows"] == first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../all", "a name must be lower-case letters, digits and underscores"),
        ("projected", "methods must have different names, got 'projected' twice"),
    ],
)
def test_names_are_parts_of_file_names(tmp_path: Path, name: str, message: str):
    tiny(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(path.read_text().replace('name = "all"', f'name = "{name}"'))
    with pytest.raises(UserError, match=message):
        load_study(path)


@pytest.mark.parametrize(
    ("settings", "method", "message"),
    [
        ("texture_size2 = 3", "triplanar", "valid keys"),
        ("scale = 0.0", "triplanar", "scale must be"),
        ("", "magic", "must be one of"),
    ],
)
def test_what_a_study_cannot_mean_is_refused(settings, method, message, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        tiny(tmp_path, settings, method)


def test_a_method_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="--only must name one of"):
        run_study("exemplar_mesh", ExemplarMeshes, tiny(tmp_path), ("other",))
