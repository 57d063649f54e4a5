"""The material that degenerate guidance knows: a textured mesh's own, or a picture as albedo."""

import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sdslab.errors import UserError
from sdslab.meshes.material import (
    ALBEDO,
    ROUGHNESS,
    dilate_seams,
    load_maps,
    picture_material,
    resize_maps,
)
from sdslab.meshes.mesh import Mesh, SourceMaterial
from sdslab.meshes.mesh_file import MeshFile
from sdslab.meshes.mesh_io import READERS, load_mesh
from sdslab.pictures.color import linear_to_srgb, srgb_to_linear
from sdslab.pictures.image_io import load_image
from sdslab.rendering.render_backend import RenderBackend
from sdslab.rendering.texels import covered_texels, rasterize_texels, transfer_maps

# A quarter of a texel: float32 texture coordinates of a file and of its copy differ by less.
UV_TOLERANCE = 2e-4


def load_target(
    source: str, mesh: Mesh, size: int, backend: RenderBackend, file: MeshFile | None = None
) -> Tensor:
    """Reads the material to recover, in the texture coordinates of ``mesh``.

    Args:
        source: a mesh file with maps (the same faces as ``mesh``, in the same order; its texture
            coordinates may differ), or the folder of a run, for its mesh.glb, or a folder of maps
            as a run writes them (in the texture coordinates of ``mesh``), or a picture, or the name
            of a scikit-image photograph.
        mesh: what is textured.
        size: height and width of the result.
        backend: for moving maps between texture coordinates.
        file: what was read of a mesh file already.

    Returns:
        [size, size, 8].

    Raises:
        UserError: no such file, no maps in it, or other faces; `source` is to be named before.
    """
    if all(os.path.isfile(os.path.join(source, name)) for name in ("run.json", "mesh.glb")):
        source = os.path.join(
            source, "mesh.glb"
        )  # unlike its maps, it tells whether it is of the same mesh
    if os.path.isdir(source):
        return resize_maps(load_maps(Path(source)), size)
    if Path(source).suffix.lower() in READERS:
        other = load_mesh(source, up=mesh.up, file=file)
        if other.source_material is None:
            raise UserError(
                "it must have a texture, got none; give a GLB, an OBJ with its MTL, or a picture"
            )
        return maps_on(mesh, other.source_material, other, size, backend)
    return picture_material(load_image(source, size)[0])


def own_maps(mesh: Mesh, size: int, backend: RenderBackend) -> Tensor:
    """The maps that came with the mesh's own file, [size, size, 8].

    Raises:
        UserError: it has none.
    """
    if mesh.source_material is None:
        raise UserError(
            f"--init source needs a mesh with a texture, got {mesh.name}, which has none; use "
            f"--init grey"
        )
    return maps_on(mesh, mesh.source_material, mesh, size, backend)


def maps_on(
    mesh: Mesh,
    material: SourceMaterial,
    owner: Mesh,
    size: int,
    backend: RenderBackend,
) -> Tensor:
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
        maps = transfer_maps(material.maps, material.corner_uv, mesh, (size, size), backend)
    if material.corner_colors is None:
        return maps
    # as glTF has it: vertex colours multiply the base colour, in linear light
    fragments = rasterize_texels(mesh, (size, size), backend, material.corner_colors)
    covered = torch.zeros(size * size, dtype=torch.bool)
    covered[fragments.pixel] = True
    texels = maps.flatten(0, 1).clone()
    albedo = srgb_to_linear(texels[fragments.pixel, ALBEDO]) * fragments.attributes
    texels[fragments.pixel, ALBEDO] = linear_to_srgb(albedo)
    return dilate_seams(texels.view(size, size, -1), covered.view(size, size))


def with_opacity(mesh: Mesh, size: int, backend: RenderBackend) -> Mesh:
    """The mesh with its file's opacity, if any, at ``size`` in its own texture coordinates."""
    material = mesh.source_material
    if material is None or material.opacity is None:
        return mesh
    # Opacity travels as a material's roughness does: a number that nothing turns.
    carrier = material.maps.clone()
    carrier[..., ROUGHNESS] = material.opacity
    plain = SourceMaterial(carrier, material.corner_uv)
    opacity = maps_on(mesh, plain, mesh, size, backend)[..., ROUGHNESS, None]
    filled = dilate_seams(opacity, covered_texels(mesh, (size, size), backend))
    return replace(mesh, opacity=filled[..., 0])
