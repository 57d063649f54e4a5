"""Finished pieces come back as they were, and only where the same code made them."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdslab.runs.store import ResultStore, code_of
from sdslab.study.experiment import Experiment
from sdslab.study.study_file import KINDS, experiment_of
from tests.conftest import random_image

Result = tuple[dict[str, torch.Tensor], dict]


def result(seed: int = 0) -> Result:
    numbers = {"psnr": {"theta": [math.inf, 12.5]}, "latent_mse": None, "curve": [[0, 1.5]]}
    return {"theta": random_image(1, 3, 4, 4, seed=seed)}, numbers


CODE = {"code": {"kernels": "1"}, "versions": {"torch": "2.13"}}


def store_in(folder: Path, code: dict = CODE, **options: bool) -> tuple[ResultStore, list[str]]:
    told: list[str] = []
    return ResultStore(folder, code, "sdslab 1", told.append, **options), told


def assert_equal(one: Result, other: Result | None) -> None:
    assert other is not None
    assert one[0]["theta"].equal(other[0]["theta"])
    assert one[1] == other[1]


def test_a_result_comes_back_as_it_was(tmp_path: Path):
    store, told = store_in(tmp_path / "cells")
    path = store.path("pixel_rgb-photo-7", "abc")
    assert path.name.startswith("pixel_rgb-photo-7-abc-")
    assert store.load(path) is None
    store.save(path, *result())
    loaded = store.load(path)
    assert_equal(result(), loaded)
    assert told == []


def test_results_of_other_code_are_told_and_taken_only_where_that_is_accepted(tmp_path: Path):
    def path_in(store: ResultStore, key: str = "abc") -> Path:
        return store.path("pixel_rgb-photo-7", key)

    before, _ = store_in(tmp_path)
    before.save(path_in(before), *result())
    new = {"code": {"kernels": "2"}, "versions": {"torch": "2.14"}}
    strict, told = store_in(tmp_path, new)
    assert strict.load(path_in(strict)) is None
    assert strict.load(path_in(strict)) is None
    assert told == [
        f"results in {tmp_path} were made by sdslab 1, this is sdslab 1; what changed: "
        f"sdslab/kernels, torch 2.13 → 2.14; they are made again; --accept-code-change takes them"
    ]
    assert strict.changes == ()
    lenient, told = store_in(tmp_path, new, accept_code=True)
    assert lenient.load(path_in(lenient, "other settings")) is None
    taken = lenient.load(path_in(lenient))
    assert_equal(result(), taken)
    assert lenient.changes == ("sdslab/kernels", "torch 2.13 → 2.14")
    assert told == [
        f"results in {tmp_path} were made by sdslab 1, this is sdslab 1; what changed: "
        f"sdslab/kernels, torch 2.13 → 2.14; they are taken all the same"
    ]
    lenient.save(path_in(lenient), *result(seed=1))
    again, told = store_in(tmp_path, new)
    own = again.load(path_in(again))
    assert_equal(result(seed=1), own)
    assert told == []


def test_where_a_cell_is_survives_other_code_only_where_that_is_accepted(tmp_path: Path):
    def partial_in(code: dict, **options: bool):
        store, told = store_in(tmp_path, code, **options)
        return store.partial(store.path("pixel_rgb-photo-7", "abc"), "abc"), told

    new = {"code": {"kernels": "2"}, "versions": {"torch": "2.13"}}
    for accept in (True, False):
        before, _ = partial_in(CODE)
        before.save({"theta": torch.ones(3)}, {"index": 5})
        now, told = partial_in(new, accept_code=accept)
        reached = now.latest()
        assert (reached is not None) == accept
        assert len(told) == 1
        assert "what changed: sdslab/kernels; they" in told[0]
        now.clear()
    before.save({"theta": torch.ones(3)}, {"index": 5})
    assert partial_in(CODE, fresh=True)[0].latest() is None


def test_a_fresh_study_takes_only_what_it_made_itself(tmp_path: Path):
    before, _ = store_in(tmp_path)
    path = before.path("pixel_rgb-photo-7", "abc")
    before.save(path, *result())
    fresh, told = store_in(tmp_path, fresh=True)
    assert fresh.load(path) is None
    fresh.save(path, *result(seed=1))
    assert fresh.load(path) is not None
    assert told == []


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_damaged_file_counts_as_missing(size: int, tmp_path: Path):
    store, _ = store_in(tmp_path)
    path = tmp_path / "cell.safetensors"
    store.save(path, *result())
    content = path.read_bytes()
    path.write_bytes(content[:size])
    assert store.load(path) is None


def test_a_foreign_file_counts_as_missing(tmp_path: Path):
    save_file({"theta": torch.zeros(1)}, tmp_path / "a.safetensors", {"result": "[]"})
    assert store_in(tmp_path)[0].load(tmp_path / "a.safetensors") is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_covers_files_that_exist(kind: str):
    experiment: type[Experiment] = experiment_of(kind)
    code = code_of(experiment.sources, torch="2.13")
    assert code["versions"] == {"torch": "2.13"}
    assert set(code["code"]) == set(experiment.sources)
    nothing = code_of(("study/nothing",))["code"]["study/nothing"]
    assert nothing not in code["code"].values()
