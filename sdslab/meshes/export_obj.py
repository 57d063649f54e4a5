"""Wavefront OBJ with an MTL and the maps beside it."""

from pathlib import Path

import torch
from torch import Tensor

from sdslab import __version__
from sdslab.errors import readable
from sdslab.files.atomic_write import atomic_write
from sdslab.meshes.material import encode_png, opacity_picture, save_maps
from sdslab.meshes.mesh import Mesh
from sdslab.meshes.mesh_file import FileMaterial

# `norm` is the PBR extension's normal map; Blender reads `map_Bump` as one. Where both are known,
# as in three.js, `norm` wins.
MATERIAL = """\
newmtl {name}
Kd 1 1 1
Ks 0 0 0
d 1
illum 2
Pr 1
Pm 1
map_Kd albedo.png
map_Pr roughness.png
map_Pm metallic.png
norm normal.png
map_Bump -bm 1 normal.png
"""


def export_obj(mesh: Mesh, maps: Tensor, folder: Path, stem: str = "mesh") -> list[Path]:
    """Writes STEM.obj, STEM.mtl and the maps of `save_maps`.

    Vertices that unwrapping split are one `v` again, in the file's order; each has texture
    coordinates and normals of its own. Positions are written exactly (float64), the rest exactly
    as float32. Every part is an object (`o`) under its name, blanks replaced by underscores. The
    file's materials keep their names; opacity goes to opacity.png, and an emissive picture is
    written where its coordinates are the mesh's own: OBJ has one set of them, and no occlusion.

    Args:
        mesh: written in its own coordinates.
        maps: [h, w, 8] as `material.py` describes.
        folder: made if need be.
        stem: of the .obj and .mtl files.

    Returns:
        The files' paths, the .obj first; it is written last.

    Raises:
        UserError: the folder cannot be written or the disk is full.
        ValueError: a map is not in [0, 1].
    """
    paths = save_maps(maps, folder)
    names = _material_names(mesh)
    pictures: dict[str, bytes] = {}
    if mesh.opacity is not None:
        pictures["opacity.png"] = encode_png(opacity_picture(mesh.opacity, maps))
    entries = [_material(mesh, kept, name, pictures) for kept, name in names.items()]
    for name, content in pictures.items():
        paths.append(folder / name)
        with atomic_write(paths[-1]) as temporary:
            temporary.write_bytes(content)
    model, material = folder / f"{stem}.obj", folder / f"{stem}.mtl"
    with atomic_write(material) as temporary:
        temporary.write_text(f"# sdslab {__version__}\n{''.join(entries)}", encoding="utf-8")
    with atomic_write(model) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f"# sdslab {__version__}\nmtllib {material.name}\n")
        file.writelines(f"{line}\n" for line in _lines(mesh, names))
    return [model, material, *paths]


def _material_names(mesh: Mesh) -> dict[FileMaterial, str]:
    """One unique word for each of the parts' materials."""
    names: dict[FileMaterial, str] = {}
    for part in mesh.parts:
        stem, number = _word(part.material.name or mesh.name), 2
        name = stem
        while name in names.values() and part.material not in names:
            name, number = f"{stem}.{number}", number + 1
        names.setdefault(part.material, name)
    return names


def _material(mesh: Mesh, kept: FileMaterial, name: str, pictures: dict[str, bytes]) -> str:
    text = MATERIAL.format(name=name)
    if kept.alpha_mode != "OPAQUE" and mesh.opacity is not None:
        text += "map_d opacity.png\n"
    image, place = kept.emissive_image, kept.emissive_place
    here = mesh.file_uv is None and place.uv_set == 0 and not place.transforms
    if any(kept.emissive) and (image is None or here):
        text += "Ke " + " ".join(f"{channel:.6g}" for channel in kept.emissive) + "\n"
        if image is not None:
            kind = "jpg" if image.startswith(b"\xff\xd8") else "png"
            file = f"emissive-{len(pictures) + 1}.{kind}"
            pictures[file] = image
            text += f"map_Ke {file}\n"
    return text


def _lines(mesh: Mesh, names: dict[FileMaterial, str]):
    # Sorted by source vertex first: the file's order.
    keys = torch.cat((mesh.source_vertex[:, None].double(), mesh.positions), 1)
    rows, vertex = torch.unique(keys, dim=0, return_inverse=True)
    yield from (f"v {x!r} {y!r} {z!r}" for _, x, y, z in rows.tolist())
    # Nine digits tell all float32 values apart.
    yield from (f"vt {u:.9g} {v:.9g}" for u, v in mesh.uv.tolist())
    yield from (f"vn {x:.9g} {y:.9g} {z:.9g}" for x, y, z in mesh.normals.tolist())
    corners = torch.stack((vertex[mesh.faces.long()], mesh.faces.long()), -1) + 1
    for part in mesh.parts:
        yield f"o {_word(part.name)}"
        yield f"usemtl {names[part.material]}"
        for face in corners[part.faces.start : part.faces.stop].tolist():
            yield "f " + " ".join(f"{v}/{vt}/{vt}" for v, vt in face)


def _word(name: str) -> str:
    """A name as OBJ allows it: not empty and without blanks."""
    return "_".join(readable(name).split()) or "unnamed"
