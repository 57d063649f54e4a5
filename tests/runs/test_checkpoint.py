import dataclasses
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdslab.errors import UserError
from sdslab.runs import checkpoint
from sdslab.runs.checkpoint import Checkpoints
from tests.conftest import random_image

IDENTITY = {"code": "abc", "config": {"views": 4, "light": ["studio", "sky"], "lr": math.inf}}
STATE = {"index": 3, "loss": [0.1, math.nan, None], "θ": '"sha256":"' + "0" * 64 + '"', "n": {}}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    return {
        "theta": random_image(4, 5, 3, seed=seed),
        "mean": random_image(3, 4, 4, seed=seed, dtype=torch.float64).movedim(0, -1),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "step": torch.tensor(7, dtype=torch.int64),
        "mask": torch.tensor([True, False]),
        "nothing": torch.zeros(0, 3),
    }


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "run", IDENTITY)
    assert checkpoints.latest() is None
    path = checkpoints.save(tensors(), STATE)
    assert path == tmp_path / "run" / "checkpoint-000001.safetensors"
    saved = Checkpoints(tmp_path / "run", IDENTITY).latest()
    assert saved is not None
    assert saved.note is None
    assert repr(saved.state) == repr(STATE)
    assert saved.tensors.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert saved.tensors[name].dtype == tensor.dtype, name
        assert saved.tensors[name].equal(tensor), name
    # Any reader of safetensors reads it.
    assert safetensors.torch.load_file(path)["theta"].equal(tensors()["theta"])


def test_the_newest_two_are_kept(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    for index in range(5):
        checkpoints.save(tensors(index), {"index": index})
    assert names(tmp_path) == ["checkpoint-000004.safetensors", "checkpoint-000005.safetensors"]
    saved = checkpoints.latest()
    assert saved is not None
    assert saved.state == {"index": 4}
    assert saved.tensors["theta"].equal(tensors(4)["theta"])


def test_other_files_are_left_alone(tmp_path: Path):
    others = ["checkpoint-1.safetensors", "checkpoint.pt", "run.json", ".checkpoint"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".checkpoint-000009.abc.safetensors").touch()  # left by a killed process
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    assert checkpoints.latest() is None
    checkpoints.save({}, {})
    assert names(tmp_path) == sorted([*others, "checkpoint-000001.safetensors"])
    checkpoints.clear()
    assert names(tmp_path) == sorted(others)


def saved_twice(folder: Path) -> tuple[Checkpoints, Path]:
    checkpoints = Checkpoints(folder, IDENTITY)
    checkpoints.save(tensors(1), {"index": 1})
    return checkpoints, checkpoints.save(tensors(2), {"index": 2})


def assert_went_back(checkpoints: Checkpoints) -> None:
    saved = checkpoints.latest()
    assert saved is not None
    assert saved.state == {"index": 1}
    assert saved.tensors["theta"].equal(tensors(1)["theta"])
    assert saved.note is not None
    assert "\n" not in saved.note
    assert "cannot be used: went back to checkpoint-000001.safetensors" in saved.note


def test_truncation_anywhere_is_detected(tmp_path: Path):
    checkpoints, newest = saved_twice(tmp_path)
    content = newest.read_bytes()
    lengths = torch.randint(len(content), (100,), generator=torch.Generator().manual_seed(0))
    for length in (0, 1, 7, 8, 9, len(content) - 1, *lengths.tolist()):
        newest.write_bytes(content[:length])
        assert_went_back(checkpoints)


def test_every_flipped_bit_is_detected(tmp_path: Path):
    checkpoints, newest = saved_twice(tmp_path)
    content = bytearray(newest.read_bytes())
    header_size = 8 + int.from_bytes(content[:8], "little")
    generator = torch.Generator().manual_seed(0)
    in_data = torch.randint(header_size, len(content), (100,), generator=generator).tolist()
    for place in (*range(0, header_size, 3), *in_data):
        content[place] ^= 1 << place % 8
        newest.write_bytes(content)
        assert_went_back(checkpoints)
        content[place] ^= 1 << place % 8
    newest.write_bytes(content)
    saved = checkpoints.latest()
    assert saved is not None
    assert (saved.state, saved.note) == ({"index": 2}, None)


def test_appended_and_swapped_bytes_are_detected(tmp_path: Path):
    checkpoints, newest = saved_twice(tmp_path)
    content = newest.read_bytes()
    for damaged in (content + b"\0", content[:-2] + content[-1:] + content[-2:-1], b"\xff" * 99):
        newest.write_bytes(damaged)
        assert_went_back(checkpoints)


def test_a_damaged_one_is_not_kept_in_place_of_a_whole_one(tmp_path: Path):
    checkpoints, newest = saved_twice(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-1])
    assert_went_back(checkpoints)
    checkpoints.save(tensors(3), {"index": 3})
    assert names(tmp_path) == ["checkpoint-000001.safetensors", "checkpoint-000003.safetensors"]


def test_it_does_not_start_over_in_silence_where_all_are_damaged(tmp_path: Path):
    checkpoints, _ = saved_twice(tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"must be whole, got checkpoint-000002.* give --fresh"):
        checkpoints.latest()
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (IDENTITY | {"code": "def"}, "got another (sdslab); give --accept-code-change to go on"),
        (
            {"code": "abc", "config": {"views": 8, "light": ["sky"], "lr": math.inf, "seed": 0}},
            'config.light: ["studio", "sky"] → ["sky"]; config.seed: absent → 0; '
            "config.views: 4 → 8; give",
        ),
        ({"code": None, "config": {}}, "(saved → now): config: absent → {}; config.light:"),
        (IDENTITY | {"more": "x" * 99}, f'more: absent → "{"x" * 36}...; give'),
        (
            IDENTITY | {"code": {"kernels": "1"}, "versions": {"torch": "2.13"}},
            "got another (sdslab, sdslab/kernels, torch none → 2.13); give",
        ),
    ],
)
def test_another_configuration_is_refused_with_the_differences(
    now: dict, difference: str, tmp_path: Path
):
    saved_twice(tmp_path)
    with pytest.raises(UserError) as caught:
        Checkpoints(tmp_path, now).latest()
    assert difference in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_identity_is_compared_as_json_has_it(tmp_path: Path):
    Checkpoints(tmp_path, {"b": (1, 2), "a": 1.0}).save({}, {})
    assert Checkpoints(tmp_path, {"a": 1.0, "b": [1, 2]}).latest() is not None


def test_another_format_is_another_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved_twice(tmp_path)
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(UserError, match="checkpoint format: 1 → 2"):
        Checkpoints(tmp_path, IDENTITY).latest()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "state.pt").write_bytes(b"\x80\x02}.")
    with pytest.raises(UserError, match="a pickle can run any code"):
        Checkpoints(tmp_path / "state.pt", {}).latest()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="a run must be a folder"):
        Checkpoints(tmp_path / "notes.txt", {}).latest()
    with pytest.raises(UserError, match=r"cannot be written|can be written"):
        Checkpoints(tmp_path / "notes.txt", {}).save({}, {})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=20, deadline=None)
@given(state=st.dictionaries(st.text(), json_values))
def test_any_json_comes_back(state: dict, tmp_path_factory: pytest.TempPathFactory):
    checkpoints = Checkpoints(tmp_path_factory.mktemp("run"), {})
    checkpoints.save({}, state)
    saved = checkpoints.latest()
    assert saved is not None
    assert repr(saved.state) == repr(state)
    assert dataclasses.astuple(saved)[2] is None
