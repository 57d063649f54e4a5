"""What becomes of a file's materials: maps to start from, and what the result keeps as it is."""

from dataclasses import replace

import numpy as np
import torch

from sdslab.meshes.atlas_tiles import AtlasTile, atlas_tiles
from sdslab.meshes.material import CHANNELS
from sdslab.meshes.mesh import SourceMaterial
from sdslab.meshes.mesh_file import FileMaterial, Indices, MeshFile
from sdslab.meshes.source_maps import OPACITY, material_maps, merge_maps, passed_picture

MOST_MATERIALS = 256
MOST_REPEATS = 2.0  # of a texture within one tile of a joint one


def source_material(
    file: MeshFile,
    faces: Indices,
    material_of_face: Indices,
    tile_of_face: Indices | None,
    notes: list[str],
) -> SourceMaterial | None:
    """A file's maps, those of several materials in one joint texture.

    Args:
        file: its materials and texture coordinates.
        faces: [f, 3] of the file's vertices.
        material_of_face: [f] index into the file's materials, −1 for none.
        tile_of_face: [f] the groups whose texture coordinates were laid side by side, or None.
        notes: gets a phrase on all that is left out.
    """
    corner_colors = _corner_colors(file, faces, notes)
    if not (material_of_face >= 0).any() and corner_colors is None:
        return None
    materials = [*file.materials, FileMaterial()]
    looks = [material.look() for material in materials]
    distinct = list(dict.fromkeys(looks))
    named = [materials[looks.index(look)] for look in distinct]  # for notes
    look_of_face = np.array([distinct.index(m) for m in looks])[material_of_face]  # −1: the last
    own_uv = file.uv if file.texture_uv is None else file.texture_uv
    if own_uv is None:
        uv = np.zeros((len(faces), 3, 2))
    else:
        uv = np.where(np.abs(own_uv) < 1e6, own_uv, 0.5)[faces]  # NaN is not less
    used = np.unique(look_of_face)
    opaque = all(distinct[k].alpha_mode == "OPAQUE" for k in used)
    if len(used) == 1:
        maps = material_maps(named[used[0]], notes)
    else:
        tile = 0 if tile_of_face is None else tile_of_face
        groups = tile * len(distinct) + look_of_face
        labels = np.unique(groups)
        members = [groups == label for label in labels]
        tiles: list[AtlasTile] = atlas_tiles([uv[m] for m in members])
        own = [int(look_of_face[m][0]) for m in members]
        repeats = [max(t.size) for t, k in zip(tiles, own, strict=True) if any(distinct[k].images)]
        if len(labels) > MOST_MATERIALS or max(repeats, default=0) > MOST_REPEATS:
            notes.append(f"the file's {len(used)} materials could not be joined")
            return None
        for tile, member in zip(tiles, members, strict=True):
            uv[member] = tile.place(uv[member])
        grid = round(1 / tiles[0].side)
        decoded = {k: material_maps(named[k], notes, grid) for k in dict.fromkeys(own)}
        maps = merge_maps([decoded[k] for k in own], tiles)
        notes.append(f"the file's {len(used)} materials joined")
    return SourceMaterial(
        maps[..., :CHANNELS].contiguous(),
        torch.from_numpy(uv.astype(np.float32)),
        None if opaque else maps[..., OPACITY].contiguous(),
        corner_colors,
    )


def _corner_colors(file: MeshFile, faces: Indices, notes: list[str]) -> torch.Tensor | None:
    """[f, 3, 3] the vertex colours, if any is not white."""
    if file.colors is None or (np.nan_to_num(file.colors, nan=1.0) == 1).all():
        return None
    notes.append(
        "vertex colours kept as _COLOR_0, since viewers multiply COLOR_0 with the new albedo"
    )
    colors = file.colors[faces][..., :3]
    return torch.from_numpy(np.where(np.isnan(colors), 1.0, colors).astype(np.float32))


def kept_materials(file: MeshFile, notes: list[str]) -> list[FileMaterial]:
    """What the result keeps of the file's materials, which pictures included."""
    return [
        replace(
            material.without_maps(),
            emissive_image=passed_picture(
                material.emissive_image, f"emissive picture of {material.name[:40]!r}", notes
            ),
            occlusion_image=passed_picture(
                material.occlusion_image, f"occlusion picture of {material.name[:40]!r}", notes
            ),
        )
        for material in file.materials
    ]


def opacity_notes(file: MeshFile, material_of_face: Indices) -> list[str]:
    """A phrase that names the materials with an opacity, if there are any."""
    used = [file.materials[k] for k in np.unique(material_of_face) if k >= 0]
    modes = [f"{m.alpha_mode} of {m.name[:40]!r}" for m in used if m.alpha_mode != "OPAQUE"]
    if not modes:
        return []
    return [f"opacity is kept ({', '.join(modes)}) and shown in the result, not while optimised"]
