"""What the files that a run reads hold: an edited one makes another run of the same command."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from sdslab.denoisers.pipeline_source import PipelineSource
from sdslab.meshes.mesh_file import MeshFileError
from sdslab.meshes.mesh_folder import LARGEST_FILE, MeshFolder
from sdslab.meshes.mesh_io import READERS
from sdslab.texture.argument_checks import guidance_of
from sdslab.texture.arguments import Arguments
from sdslab.texture.input_checks import named_inputs
from sdslab.texture.stage_settings import resolved_settings

CHUNK = 2**20
WITH_FILES_BESIDE = (".obj", ".gltf", ".ply")
MODEL_PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")


def input_digests(arguments: Arguments, beside: list[Path]) -> dict[str, str]:
    """SHA-256 of each file or folder that the command line names, by its name there.

    Names of what ships and of what is not there are left out. Of a model's folder, gigabytes,
    names, sizes and times of the files count instead of their content; of a model on the hub, its
    commit.

    Args:
        arguments: of the run.
        beside: gets the files that meshes name: their materials, pictures and buffers.

    Raises:
        UserError: a model cannot be had.
    """
    digests = {
        name: _digest(Path(name), beside)
        for name in named_inputs(arguments).values()
        if os.path.exists(name)  # False, too, for a name that is too long
    }
    if guidance_of(arguments) in ("deepfloyd", "stable-diffusion"):
        settings = resolved_settings(arguments)
        models = (settings.stage_one.model, "--model"), (settings.stage_two.model, "--sr-model")
        for name, option in models:
            if name is not None:
                digests[name] = PipelineSource(name, option).digest(MODEL_PARTS)
    return digests


def _digest(path: Path, beside: list[Path]) -> str:
    sha = hashlib.sha256()
    for file in _files(path):
        sha.update(os.fsencode(file.name) + b"\0")
        with file.open("rb") as content:
            while chunk := content.read(CHUNK):
                sha.update(chunk)
    if path.suffix.lower() in WITH_FILES_BESIDE and path.stat().st_size <= LARGEST_FILE:
        sha.update(_digest_of_files_beside(path, beside))
    return sha.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from sorted(file for file in path.iterdir() if file.is_file())


def _digest_of_files_beside(path: Path, beside: list[Path]) -> bytes:
    """Of what the mesh names: its materials, pictures and buffers, which its reader asks for."""
    folder = _ListeningFolder(path, beside)
    try:
        READERS[path.suffix.lower()](path.read_bytes(), folder)
    except MeshFileError:  # which `load_mesh` tells
        return b""
    return folder.sha.digest()


class _ListeningFolder(MeshFolder):
    """Hashes what is read through it, and lists it."""

    def __init__(self, mesh: Path, listed: list[Path]) -> None:
        super().__init__(mesh)
        self.sha, self.listed = hashlib.sha256(), listed

    def load(self, path: Path) -> bytes:
        content = super().load(path)
        self.listed.append(path)
        self.sha.update(os.fsencode(path.relative_to(self.root)) + b"\0" + content)
        return content
