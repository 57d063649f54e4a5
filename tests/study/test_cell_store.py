import dataclasses
import math
from pathlib import Path

import pytest
import torch

from sdslab.study.cell_store import (
    NUMERIC_SOURCES,
    PACKAGE,
    CellStore,
    cell_key,
    code_digest,
)
from sdslab.study.reconstruct import CellResult, Readout
from sdslab.study.specification import Cell, Optimization
from tests.conftest import random_image

CELL = Cell(
    name="pixel_rgb",
    label="RGB",
    diffusion="pixel",
    parameterization="pixel",
    initialization="noise",
    optimization=Optimization(steps=3),
)


def result(seed: int = 0) -> CellResult:
    image = random_image(1, 3, 4, 4, seed=seed)
    readouts = {"theta": Readout(image, math.inf, 12.5), "decoded": Readout(image + 1, 3.0, 4.0)}
    return CellResult(readouts, 1e-9, 0.5, 25.0, 3, 0.25, [(0, 1.5), (3, 12.5)])


def assert_equal(one: CellResult, other: CellResult) -> None:
    for name, readout in one.readouts.items():
        assert readout.image.equal(other.readouts[name].image)
        assert readout.psnr_db == other.readouts[name].psnr_db
        assert readout.psnr_clamped_db == other.readouts[name].psnr_clamped_db
    assert dataclasses.replace(one, readouts={}) == dataclasses.replace(other, readouts={})


def test_a_result_comes_back_as_it_was(tmp_path: Path):
    store = CellStore(tmp_path / "cells")
    path = store.path(CELL, "folder/photo.jpg", 7, "abc")
    assert path.name == "pixel_rgb-photo-7-abc.safetensors"
    assert store.load(path) is None
    store.save(path, result())
    loaded = store.load(path)
    assert loaded is not None
    assert_equal(result(), loaded)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_damaged_file_counts_as_missing(size: int, tmp_path: Path):
    store = CellStore(tmp_path)
    path = tmp_path / "cell.safetensors"
    store.save(path, result())
    content = path.read_bytes()
    path.write_bytes(content[:size])
    assert store.load(path) is None


def test_a_foreign_file_counts_as_missing(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"theta": torch.zeros(1)}, tmp_path / "a.safetensors", {"result": "[]"})
    assert CellStore(tmp_path).load(tmp_path / "a.safetensors") is None


def test_the_key_depends_on_every_number_and_on_no_label():
    key = cell_key(CELL, seed=0, image="x")
    assert (
        cell_key(dataclasses.replace(CELL, label="other", pictured=False), seed=0, image="x") == key
    )
    changed = [
        cell_key(CELL, seed=1, image="x"),
        cell_key(CELL, seed=0, image="y"),
        cell_key(dataclasses.replace(CELL, weighting="x0_castex"), seed=0, image="x"),
        cell_key(dataclasses.replace(CELL, optimization=Optimization(4)), seed=0, image="x"),
        cell_key(dataclasses.replace(CELL, width=3), seed=0, image="x"),
    ]
    assert len({key, *changed}) == 6


def test_the_code_digest_covers_files_that_exist():
    for source in NUMERIC_SOURCES:
        assert (PACKAGE / source).exists(), source
    assert len(code_digest()) == 64
