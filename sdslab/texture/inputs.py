"""The files that a run reads: mesh, lights, and digests, for an edited file makes another run."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import Progress

from sdslab.denoisers.pipeline_source import PipelineSource
from sdslab.material_recovery import light_sampler
from sdslab.meshes.mesh import Mesh
from sdslab.meshes.mesh_file import MeshFile, MeshFileError
from sdslab.meshes.mesh_folder import LARGEST_FILE, MeshFolder
from sdslab.meshes.mesh_io import load_mesh, read_mesh_file
from sdslab.rendering.lighting import LightSampler
from sdslab.texture.argument_checks import guidance_of, named_inputs
from sdslab.texture.arguments import Arguments
from sdslab.texture.resolved_arguments import resolved_settings

CHUNK = 2**20
WITH_FILES_BESIDE = (".obj", ".gltf", ".ply")
MODEL_PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a run reads.

    Attributes:
        digests: SHA-256 of each file or folder that the command line names, by its name there.
            Names of what ships and of what is not there are left out. Of a model's folder,
            gigabytes, names, sizes and times of the files count instead of their content; of a
            model on the hub, its commit.
        beside: the files that meshes name: their materials, pictures and buffers.
        meshes: what was read of mesh files on the way, by name.
    """

    digests: dict[str, str] = field(default_factory=dict)
    beside: list[Path] = field(default_factory=list)
    meshes: dict[str, MeshFile] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: Arguments) -> "Inputs":
        """Reads them all.

        Raises:
            UserError: a model cannot be had.
        """
        inputs = cls()
        for name in named_inputs(arguments).values():
            if os.path.exists(name) and name not in inputs.digests:  # False if it is too long
                inputs.digests[name] = inputs._digest(name)
        if guidance_of(arguments) in ("deepfloyd", "stable-diffusion"):
            settings = resolved_settings(arguments)
            models = (settings.stage_one.model, "--model"), (settings.stage_two.model, "--sr-model")
            for name, option in models:
                if name is not None:
                    inputs.digests[name] = PipelineSource(name, option).digest(MODEL_PARTS)
        return inputs

    def _digest(self, name: str) -> str:
        path, sha = Path(name), hashlib.sha256()
        for file in _files(path):
            sha.update(os.fsencode(file.name) + b"\0")
            with file.open("rb") as content:
                while chunk := content.read(CHUNK):
                    sha.update(chunk)
        if path.suffix.lower() in WITH_FILES_BESIDE and path.stat().st_size <= LARGEST_FILE:
            folder = _ListeningFolder(path, self.beside)
            # A mesh that is not sound is refused when it is loaded.
            with suppress(MeshFileError):
                self.meshes[name] = read_mesh_file(path, folder)
                sha.update(folder.sha.digest())
        return sha.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from sorted(file for file in path.iterdir() if file.is_file())


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


def load_named_mesh(arguments: Arguments, inputs: Inputs, progress: Progress) -> Mesh:
    """The mesh that the command line names; says how large it is and what was repaired."""
    task = progress.add_task("loading the mesh", total=1, note="")
    mesh = load_mesh(
        arguments.subject.mesh,
        arguments.subject.unwrap,
        lambda share: progress.update(task, description="unwrapping", completed=share),
        smooth=arguments.subject.smooth,
        up=arguments.subject.up,
        file=inputs.meshes.get(arguments.subject.mesh),
    )
    progress.remove_task(task)
    text = f"{mesh.name}: {len(mesh.faces):,} faces, {len(mesh.positions):,} vertices"
    notes = "; ".join((text, *mesh.notes))
    progress.console.print(notes, markup=False, highlight=False, soft_wrap=True)
    return mesh


def load_lights(
    arguments: Arguments, device: torch.device, progress: Progress
) -> LightSampler | None:
    """The lights of the steps; None for unlit pictures."""
    if arguments.rendering.unlit:
        return None
    names = arguments.rendering.light
    task = progress.add_task("prefiltering the light", total=None, note="")
    lights = light_sampler(
        names,
        arguments.rendering.fixed_light,
        arguments.optimization.seed,
        device,
        arguments.rendering.lamp,
        arguments.rendering.turn_light,
        arguments.rendering.light_intensity,
    )
    progress.remove_task(task)
    return lights
