"""What a run reads: mesh, lights, materials on its texels, and digests of all of their files."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from sdslab.denoisers.pipelines import PipelineSource
from sdslab.errors import UserError
from sdslab.material_recovery import light_sampler
from sdslab.meshes.material import (
    ALBEDO,
    ROUGHNESS,
    dilate_seams,
    load_maps,
    picture_material,
    resize_maps,
)
from sdslab.meshes.mesh import Mesh, SourceMaterial
from sdslab.meshes.mesh_file import MeshFile, MeshFileError
from sdslab.meshes.mesh_folder import LARGEST_FILE, MeshFolder
from sdslab.meshes.mesh_io import READERS, load_mesh, read_mesh_file
from sdslab.pictures.color import linear_to_srgb, srgb_to_linear
from sdslab.pictures.image_io import load_image
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.lighting import LightSampler
from sdslab.rendering.texels import covered_texels, rasterize_texels, transfer_maps
from sdslab.shell.progress_lines import ProgressLines, tell
from sdslab.texture.argument_checks import guidance_of, named_inputs
from sdslab.texture.arguments import Arguments
from sdslab.texture.resolved_arguments import resolved_settings

CHUNK = 2**20
WITH_FILES_BESIDE = (".obj", ".gltf", ".ply")
MODEL_PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
# A quarter of a texel: float32 texture coordinates of a file and of its copy differ by less.
UV_TOLERANCE = 2e-4
BACKEND = CpuBackend()  # moves maps between texture coordinates


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


def load_named_mesh(arguments: Arguments, inputs: Inputs, progress: ProgressLines) -> Mesh:
    """The mesh that the command line names; says how large it is and what was repaired."""
    task = progress.add_task("loading the mesh", total=1)
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
    tell("; ".join((text, *mesh.notes)))
    return mesh


def load_lights(
    arguments: Arguments, device: torch.device, progress: ProgressLines
) -> LightSampler | None:
    """The lights of the steps; None for unlit pictures."""
    if arguments.rendering.unlit:
        return None
    rendering = arguments.rendering
    with progress.busy("prefiltering the light"):
        return light_sampler(
            rendering.light,
            rendering.fixed_light,
            arguments.optimization.seed,
            device,
            rendering.lamp,
            rendering.turn_light,
            rendering.light_intensity,
        )


def load_target(source: str, mesh: Mesh, size: int, file: MeshFile | None = None) -> Tensor:
    """Reads the material to recover, in the texture coordinates of ``mesh``.

    Args:
        source: a mesh file with maps (the same faces as ``mesh``, in the same order; its texture
            coordinates may differ), or the folder of a run, for its mesh.glb, or a folder of maps
            as a run writes them (in the texture coordinates of ``mesh``), or a picture, or the name
            of a scikit-image photograph.
        mesh: what is textured.
        size: height and width of the result.
        file: what was read of a mesh file already.

    Returns:
        [size, size, 8].

    Raises:
        UserError: no such file, no maps in it, or other faces; `source` is to be named before.
    """
    if all(os.path.isfile(os.path.join(source, name)) for name in ("run.json", "mesh.glb")):
        # Unlike its maps, it tells whether it is of the same mesh.
        source = os.path.join(source, "mesh.glb")
    if os.path.isdir(source):
        return resize_maps(load_maps(Path(source)), size)
    if Path(source).suffix.lower() in READERS:
        other = load_mesh(source, up=mesh.up, file=file)
        if other.source_material is None:
            raise UserError(
                "it must have a texture, got none; give a GLB, an OBJ with its MTL, or a picture"
            )
        return maps_on(mesh, other.source_material, other, size)
    return picture_material(load_image(source, size)[0])


def own_maps(mesh: Mesh, size: int) -> Tensor:
    """The maps that came with the mesh's own file, [size, size, 8].

    Raises:
        UserError: it has none.
    """
    if mesh.source_material is None:
        raise UserError(
            f"--init source needs a mesh with a texture, got {mesh.name}, which has none; use "
            f"--init grey"
        )
    return maps_on(mesh, mesh.source_material, mesh, size)


def maps_on(mesh: Mesh, material: SourceMaterial, owner: Mesh, size: int) -> Tensor:
    """A file's maps at ``size``, moved to the mesh's own texture coordinates where they differ."""
    if len(owner.faces) != len(mesh.faces):
        raise UserError(
            f"it must have the faces of the mesh, {len(mesh.faces)} in the same order, got "
            f"{len(owner.faces)}; export it from the same mesh"
        )
    here = mesh.render_positions[mesh.faces.long()]
    there = owner.render_positions[owner.faces.long()]
    apart = (here - there).abs().amax((1, 2)) > 1e-3
    if apart.any():
        raise UserError(
            f"it must have the faces of the mesh in the same order, got {int(apart.sum())} that "
            f"lie elsewhere; export it from the same mesh"
        )
    difference = material.corner_uv - mesh.uv[mesh.faces.long()]
    if (difference - difference.round()).abs().max() < UV_TOLERANCE:
        maps = resize_maps(material.maps, size)
    else:
        maps = transfer_maps(material.maps, material.corner_uv, mesh, (size, size), BACKEND)
    if material.corner_colors is None:
        return maps
    # as glTF has it: vertex colours multiply the base colour, in linear light
    fragments = rasterize_texels(mesh, (size, size), BACKEND, material.corner_colors)
    covered = torch.zeros(size * size, dtype=torch.bool)
    covered[fragments.pixel] = True
    texels = maps.flatten(0, 1).clone()
    albedo = srgb_to_linear(texels[fragments.pixel, ALBEDO]) * fragments.attributes
    texels[fragments.pixel, ALBEDO] = linear_to_srgb(albedo)
    return dilate_seams(texels.view(size, size, -1), covered.view(size, size))


def with_opacity(mesh: Mesh, size: int) -> Mesh:
    """The mesh with its file's opacity, if any, at ``size`` in its own texture coordinates."""
    material = mesh.source_material
    if material is None or material.opacity is None:
        return mesh
    # Opacity travels as a material's roughness does: a number that nothing turns.
    carrier = material.maps.clone()
    carrier[..., ROUGHNESS] = material.opacity
    plain = SourceMaterial(carrier, material.corner_uv)
    opacity = maps_on(mesh, plain, mesh, size)[..., ROUGHNESS, None]
    filled = dilate_seams(opacity, covered_texels(mesh, (size, size), BACKEND))
    return replace(mesh, opacity=filled[..., 0])
