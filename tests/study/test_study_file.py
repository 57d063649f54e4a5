from pathlib import Path

import pytest

from sdslab.errors import UserError
from sdslab.study.experiment import check_only, rows_of
from sdslab.study.study_file import find_study, list_studies, load_study, study_kind

STUDY = """
title = "A study"
[settings]
images = ["chelsea"]
seeds = [0, 1]
size = 64
[presets.small]
size = 32
[presets.small.cells.one.optimization]
steps = 3
[[cells]]
name = "one"
label = "One"
diffusion = "pixel"
parameterization = "pixel"
initialization = "noise"
paper_psnr_db = { theta = 148 }
optimization = { steps = 10, learning_rate = 1 }
[[cells]]
name = "two"
label = "Two"
diffusion = "latent"
parameterization = "dip"
optimization = { steps = 10 }
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "study.toml"
    file.write_text(STUDY)
    return file


def test_a_study_file_becomes_dataclasses(path: Path):
    study = load_study(path)
    assert (study.name, study.preset, study.settings.size) == ("study", "default", 64)
    assert study.settings.seeds == (0, 1)
    one, two = study.cells
    assert one.optimization.learning_rate == 1.0
    assert one.paper_psnr_db == {"theta": 148.0}
    assert (two.initialization, two.network, two.width) == ("network", "paint-it", None)


def test_a_preset_replaces_single_values(path: Path):
    study = load_study(path, "small")
    assert (study.preset, study.settings.size, study.settings.seeds) == ("small", 32, (0, 1))
    assert study.cells[0].optimization.steps == 3
    assert study.cells[0].optimization.learning_rate == 1.0
    assert study.cells[1].optimization.steps == 10


def test_rows_that_are_not_there_are_refused(path: Path):
    names = [row.name for row in rows_of(load_study(path))]
    check_only(("two",), names)
    with pytest.raises(UserError, match="--only must name one of one, two, got 'three'"):
        check_only(("three",), names)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("title =", "titel =", "valid keys are title, kind, settings, cells, presets; got 'titel'"),
        ("size = 64", "siez = 64", "valid keys are images, seeds, size, .*; got 'siez'"),
        ("size = 64", 'size = "64"', "settings.size must be int, got '64'"),
        ("size = 64", "size = true", "settings.size must be int, got True"),
        ("seeds = [0, 1]", "seeds = 0", "settings.seeds must be a list of at least one, got 0"),
        ("seeds = [0, 1]", "", "settings: 'seeds' must be given"),
        ("steps = 10,", "stpes = 10,", "valid keys are steps, optimizer, .*; got 'stpes'"),
        (
            '"pixel"\nparam',
            '"pixels"\nparam',
            "diffusion must be one of pixel, latent, got 'pixels'",
        ),
        ('"dip"', '"latent"', "initialization must be 'grey', 'noise' or 'image' for pixel"),
        ('name = "two"', 'name = "one"', "different names, got 'one' twice"),
        ('name = "two"', 'name = "../two"', "lower-case letters, digits and underscores"),
        ("theta = 148", "tehta = 148", "valid keys are theta, decoded; got 'tehta'"),
        ("cells.one.opt", "cells.won.opt", "valid keys are one, two; got 'won'"),
        ("[presets.small]\nsize", "[presets.small]\nsiez", "valid keys are images, .*; got 'siez'"),
        ('title = "A study"', "title = ", "must be a readable TOML file"),
    ],
)
def test_mistakes_name_what_is_valid(path: Path, before: str, after: str, message: str):
    assert before in STUDY
    path.write_text(STUDY.replace(before, after, 1))
    with pytest.raises(UserError, match=message):
        load_study(path)


def test_latent_pixels_need_latent_diffusion(path: Path):
    path.write_text(STUDY.replace('"pixel"\ninitialization', '"latent"\ninitialization'))
    with pytest.raises(UserError, match="a latent parameterization needs diffusion = 'latent'"):
        load_study(path)


def test_unknown_presets_and_studies_list_the_valid_ones(path: Path):
    with pytest.raises(UserError, match="preset must be one of small, got 'big'"):
        load_study(path, "big")
    with pytest.raises(
        UserError, match=r"STUDY must be one of .*figure2.*, or a .toml file, got 'fig3'"
    ):
        find_study("fig3")
    with pytest.raises(UserError, match=r"existing .toml file, got 'missing.toml'"):
        find_study("missing.toml")
    with pytest.raises(UserError, match="STUDY must be one of"):
        find_study("../../etc/passwd")


@pytest.mark.parametrize("name", list_studies())
def test_the_studies_that_come_with_sdslab_are_valid_in_every_preset(name: str):
    file = find_study(name)
    text = file.read_text()
    presets = [None, *(p for p in ("quick", "full", "paper") if f"[presets.{p}" in text)]
    assert study_kind(file) == (name if "kind =" in text else "reconstruction")
    for preset in presets:
        study = load_study(file, preset)
        assert rows_of(study)
        assert study.preset == preset or preset is None


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seeds = [0, 1]", "seeds = [1, 1]", r"settings.seeds must be different and within \["),
        ("size = 64", "size = 0", "settings.size must be from 1 to 8192, got 0"),
        ('["chelsea"]', '["a", "a"]', "settings.images must name different pictures, got a, a"),
        ("[presets.small]\nsize = 32", "[presets.small]\nsize = 0", "must be from 1 to 8192"),
    ],
)
def test_bounds_hold_in_the_file_and_in_its_presets(
    path: Path, before: str, after: str, message: str
):
    path.write_text(STUDY.replace(before, after, 1))
    with pytest.raises(UserError, match=message):
        load_study(path)


def test_a_study_is_of_a_known_kind(tmp_path: Path):
    (tmp_path / "x.toml").write_text('title = "x"\nkind = "opera"\n')
    with pytest.raises(
        UserError, match=r"kind must be one of reconstruction, renderer, kernels, .*, got 'opera'"
    ):
        study_kind(tmp_path / "x.toml")
