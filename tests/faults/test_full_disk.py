"""Where nothing can be written: one clear line, earlier files intact, and on it goes afterwards."""

import dataclasses
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sdslab.errors import UserError
from sdslab.files.atomic_write import check_writable
from sdslab.meshes.export_glb import export_glb
from sdslab.meshes.material import constant_material
from sdslab.meshes.procedural_meshes import sphere
from sdslab.runs.checkpoint import Checkpoints
from sdslab.runs.lock import RunLock
from sdslab.runs.record import write_json
from sdslab.runs.store import ResultStore
from sdslab.study.__main__ import Overrides, Selection, run
from tests.conftest import random_image

TENSORS = {"theta": torch.zeros(64, 64)}


def save_checkpoint(folder: Path) -> None:
    Checkpoints(folder, {}).save(TENSORS, {})


def save_cell(folder: Path) -> None:
    store = ResultStore(folder / "cells", {}, "", print)
    store.save(folder / "cells" / "one.safetensors", {"theta": random_image(1, 3, 64, 64)}, {})


def save_record(folder: Path) -> None:
    write_json(folder / "run.json", {"curve": list(range(5000))})


def save_mesh(folder: Path) -> None:
    export_glb(sphere(), constant_material(64, 64), folder / "mesh.glb")


WRITERS = [save_checkpoint, save_cell, save_record, save_mesh]


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture
def tiny_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A megabyte, or as many as the test asks for."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={getattr(request, 'param', 1)}m"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    # Lazily: a tensor that was read from it may still be mapped.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_loses_nothing(write: Callable[[Path], None], tiny_disk: Path):
    write(tiny_disk)
    before = contents(tiny_disk)
    filler = tiny_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(2**21))
    os.truncate(filler, filler.stat().st_size - 8192)  # room for names, and for half of a file
    with pytest.raises(UserError, match="cannot be written: No space left on device; free some"):
        write(tiny_disk)
    filler.unlink()
    assert contents(tiny_disk) == before
    write(tiny_disk)


def test_a_run_goes_on_once_there_is_room_again(tiny_disk: Path):
    checkpoints = Checkpoints(tiny_disk, {})
    for index in range(3):
        checkpoints.save(TENSORS, {"index": index})
    with pytest.raises(UserError, match="No space left"):
        checkpoints.save({"theta": torch.zeros(10**6)}, {"index": 3})
    saved = Checkpoints(tiny_disk, {}).latest()
    assert saved is not None
    assert (saved.state, saved.note) == ({"index": 2}, None)
    checkpoints.save(TENSORS, {"index": 3})
    saved = Checkpoints(tiny_disk, {}).latest()
    assert saved is not None
    assert saved.state == {"index": 3}


@pytest.mark.parametrize("write", WRITERS)
def test_a_read_only_disk_is_told(write: Callable[[Path], None], tiny_disk: Path):
    write(tiny_disk)
    before = contents(tiny_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(UserError, match="Read-only file system"):
        write(tiny_disk)
    with pytest.raises(UserError, match="Read-only file system"), RunLock(tiny_disk):
        pass
    with pytest.raises(UserError, match="Read-only file system"):
        check_writable(tiny_disk / "out")
    assert contents(tiny_disk) == before


@pytest.mark.parametrize("call", ["fsync", "replace", "mkstemp"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_any_call_may_fail(call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(TENSORS, {"index": 0})
    before = contents(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    owner = {"fsync": "os", "replace": "pathlib.Path", "mkstemp": "tempfile"}[call]
    with monkeypatch.context() as patch:
        patch.setattr(f"{owner}.{call}", fail)
        with pytest.raises(UserError, match=os.strerror(code)):
            checkpoints.save(TENSORS, {"index": 1})
    assert contents(tmp_path) == before
    checkpoints.save(TENSORS, {"index": 1})
    saved = checkpoints.latest()
    assert saved is not None
    assert saved.state == {"index": 1}


STUDY = """
title = "Two cells"
[settings]
images = ["coffee"]
seeds = [0, 1]
size = 128
[[cells]]
name = "pixel_rgb"
label = "RGB pixels"
diffusion = "pixel"
parameterization = "pixel"
initialization = "noise"
optimization = { optimizer = "sgd", learning_rate = 0.1, steps = 20 }
"""


@pytest.mark.parametrize("tiny_disk", [16], indirect=True)
def test_a_study_on_a_full_disk_keeps_its_cells_and_goes_on(
    tiny_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    path = tmp_path / "two.toml"
    path.write_text(STUDY)
    overrides = Overrides(out=str(tiny_disk))
    run(Selection(str(path)), dataclasses.replace(overrides, seeds=(0,)))
    cells = contents(tiny_disk / "two" / "cells")
    assert len(cells) == 1
    filler = tiny_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(2**24))
    os.truncate(filler, filler.stat().st_size - 2**16)  # for the record, but not for a cell
    with pytest.raises(UserError, match="cannot be written: No space left on device; free some"):
        run(Selection(str(path)), overrides)
    assert contents(tiny_disk / "two" / "cells") == cells
    filler.unlink()
    capsys.readouterr()
    run(Selection(str(path)), overrides)
    assert capsys.readouterr().err.count("saved from before") == 1
    assert len(contents(tiny_disk / "two" / "cells")) == 2
    assert (tiny_disk / "two.png").is_file()
