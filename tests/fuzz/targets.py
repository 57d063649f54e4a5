"""What each parser must do with any bytes: take them, or refuse them in one line.

A target returns whether its input was taken, and raises whatever else happens. The tests here run
them on edited files; ``run_atheris.py`` runs them for as long as one likes.
"""

import dataclasses
import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from sdslab.errors import UserError
from sdslab.meshes.mesh_io import load_mesh
from sdslab.report.comparison import write_csv, write_index
from sdslab.report.run_page import write_report
from sdslab.runs.checkpoint import Checkpoints
from sdslab.runs.lock import LOCK_NAME, RunLock
from sdslab.runs.record import run_record
from sdslab.runs.schema import read_run
from sdslab.study.study_file import load_study, resumed_study
from sdslab.texture.argument_checks import check
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
from sdslab.texture.run_folder import resumed_run

REPOSITORY = Path(__file__).parents[2]
DEFAULTS = Arguments(
    Subject(), Exemplar(), Model(), Distillation(), Optimization(), Rendering(), Output()
)
IDENTITY = {"code": "abc", "views": 4}
CHECKPOINT = "checkpoint-000001.safetensors"


def _taken(action: Callable[[Path], object], name: str, data: bytes) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            action(path)
        except UserError as error:
            message = str(error)
            if not message or len(message.splitlines()) != 1:
                raise AssertionError(f"a refusal must be one line, got {message!r}") from error
            return False
        return True


def study_toml(data: bytes) -> bool:
    """A study file of any kind, with and without its presets."""

    def load(path: Path) -> None:
        load_study(path)
        load_study(path, "quick")

    return _taken(load, "study.toml", data)


def checkpoint(data: bytes) -> bool:
    """A whole checkpoint file."""
    return _taken(lambda path: Checkpoints(path.parent, IDENTITY).latest(), CHECKPOINT, data)


def checkpoint_header(data: bytes) -> bool:
    """A checkpoint's header, under a checksum made to fit: what an attacker could write."""
    content = bytearray(len(data).to_bytes(8, "little") + data + bytes(256))
    match = re.search(rb'"sha256":"([0-9a-f]{64})"', content)
    if match:
        content[slice(*match.span(1))] = b"0" * 64
        content[slice(*match.span(1))] = hashlib.sha256(content).hexdigest().encode()
    return checkpoint(bytes(content))


def run_json(data: bytes) -> bool:
    """The record of a texture run, as ``--resume`` reads it."""

    def resume(path: Path) -> None:
        given = dataclasses.replace(DEFAULTS, output=Output(resume=str(path.parent)))
        check(resumed_run(given, lambda own: own).arguments)

    return _taken(resume, "run.json", data)


def study_run_json(data: bytes) -> bool:
    """The record of a study, as ``--resume`` reads it."""

    def resume(path: Path) -> None:
        folder = path.parent / "figure2"
        folder.mkdir()
        resumed_study(str(path.replace(folder / "run.json").parent))

    return _taken(resume, "run.json", data)


def run_lock(data: bytes) -> bool:
    """The file of a run's lock."""

    def hold(path: Path) -> None:
        with RunLock(path.parent):
            pass

    return _taken(hold, LOCK_NAME, data)


def mesh_obj(data: bytes) -> bool:
    """An OBJ mesh; nothing beside it exists."""
    return _taken(lambda path: load_mesh(str(path), "never"), "mesh.obj", data)


def mesh_glb(data: bytes) -> bool:
    """A binary glTF mesh."""
    return _taken(lambda path: load_mesh(str(path), "never"), "mesh.glb", data)


def run_report(data: bytes) -> bool:
    """A run's record, and the pages that show it."""

    def show(path: Path) -> None:
        write_report(path.parent)
        runs = [(path.parent, read_run(path))] * 2
        write_index(runs, path.parent / "index.html")
        write_csv(runs, path.parent / "runs.csv")

    return _taken(show, "run.json", data)


TARGETS: dict[str, Callable[[bytes], bool]] = {
    target.__name__: target
    for target in (
        study_toml,
        run_json,
        study_run_json,
        run_report,
        checkpoint,
        checkpoint_header,
        run_lock,
        mesh_obj,
        mesh_glb,
    )
}


def valid_inputs() -> dict[str, list[bytes]]:
    """For each target, files that it takes: what edits start from."""
    from sdslab.meshes.export_glb import export_glb
    from sdslab.meshes.material import constant_material

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = {"index": 3, "loop": {"optimizer": {"0": {"step": {"tensor": "theta"}}}}}
        saved = Checkpoints(folder, IDENTITY).save({"theta": torch.ones(8, 8)}, state)
        content = saved.read_bytes()
        header_size = int.from_bytes(content[:8], "little")
        assert safetensors.torch.load(content)["theta"].numel() * 4 == 256
        with RunLock(folder / "run"):
            lock = (folder / "run" / LOCK_NAME).read_bytes()
        obj = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nvn 0 0 1\nf 1/1/1 2/2/1 3/3/1\n"
        (folder / "mesh.obj").write_bytes(obj)
        mesh = load_mesh(str(folder / "mesh.obj"), "never")
        export_glb(mesh, constant_material(1, 1), folder / "mesh.glb")
        glb = (folder / "mesh.glb").read_bytes()
    device = torch.device("cpu")
    texture = run_record(
        dataclasses.asdict(DEFAULTS), device, program="texture", kind="exemplar", seeds=(0,)
    )
    texture |= {"metrics": {"steps": 3}, "seconds": {"total": 2.5}, "peak_memory_mb": {"gpu": 1.5}}
    texture["details"] = {"inputs": {}, "folder": "/"}
    study = run_record({"cells": [{"name": "a", "steps": 2}]}, device, program="study", kind="x")
    figure2 = load_study(REPOSITORY / "studies" / "figure2.toml")
    config = json.loads(json.dumps(dataclasses.asdict(figure2)).replace("Infinity", '"inf"'))
    resumable = run_record(config, device, program="study", kind="reconstruction", seeds=(0,))
    named = resumable | {"details": {"folder": "/", "only": ["pixel_rgb"]}}
    studies = [path.read_bytes() for path in sorted((REPOSITORY / "studies").glob("*.toml"))]
    return {
        "study_toml": studies,
        "run_json": [json.dumps(texture).encode()],
        "study_run_json": [json.dumps(record).encode() for record in (resumable, named)],
        "checkpoint": [content],
        "checkpoint_header": [content[8 : 8 + header_size]],
        "run_lock": [lock, json.dumps({"host": "node7"}).encode()],
        "run_report": [json.dumps(record).encode() for record in (texture, study)],
        "mesh_obj": [obj],
        "mesh_glb": [glb],
    }
