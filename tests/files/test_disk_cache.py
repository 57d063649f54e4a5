from pathlib import Path

import pytest
import torch

from sdslab.files import disk_cache
from sdslab.files.disk_cache import cached_tensors, content_hash
from tests.conftest import random_image


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(disk_cache, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def test_content_hashes_tell_tensors_apart():
    x = random_image(2, 3)
    different = [x, x.double(), x.view(3, 2), x + 1e-7]
    assert len({content_hash(tensor) for tensor in different}) == 4
    assert content_hash(x) == content_hash(x.clone())


def test_a_result_is_made_once(folder: Path):
    calls = []

    def compute() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"x": torch.arange(3.0)}

    for _ in range(2):
        assert cached_tensors("kind", "key", compute)["x"].tolist() == [0, 1, 2]
    assert len(calls) == 1
    assert [file.name for file in (folder / "kind").iterdir()] == ["key.safetensors"]


def test_a_damaged_file_is_made_again(folder: Path):
    cached_tensors("kind", "key", lambda: {"x": torch.zeros(2)})
    path = folder / "kind" / "key.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    assert cached_tensors("kind", "key", lambda: {"x": torch.ones(2)})["x"].tolist() == [1, 1]
    assert cached_tensors("kind", "key", dict)["x"].tolist() == [1, 1]


def test_a_folder_that_cannot_be_written_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(disk_cache, "cache_folder", lambda: tmp_path / "file")
    assert cached_tensors("kind", "key", lambda: {"x": torch.ones(1)})["x"].item() == 1
