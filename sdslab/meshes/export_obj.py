"""Wavefront OBJ with an MTL and the maps beside it."""

from pathlib import Path

import torch
from torch import Tensor

from sdslab import __version__
from sdslab.atomic_write import atomic_write
from sdslab.meshes.material_io import save_maps
from sdslab.meshes.mesh import Mesh

# `norm` is the PBR extension's normal map; Blender reads `map_Bump` as one. Where both are known,
# as in three.js, `norm` wins.
MATERIAL = """\
# sdslab {version}
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
    as float32. Every part is an object (`o`) under its name, blanks replaced by underscores.

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
    name = _word(mesh.name)
    model, material = folder / f"{stem}.obj", folder / f"{stem}.mtl"
    with atomic_write(material) as temporary:
        temporary.write_text(MATERIAL.format(version=__version__, name=name), encoding="utf-8")
    with atomic_write(model) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f"# sdslab {__version__}\nmtllib {material.name}\n")
        file.writelines(f"{line}\n" for line in _lines(mesh, name))
    return [model, material, *paths]


def _lines(mesh: Mesh, material: str):
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
        yield f"usemtl {material}"
        for face in corners[part.faces.start : part.faces.stop].tolist():
            yield "f " + " ".join(f"{v}/{vt}/{vt}" for v, vt in face)


def _word(name: str) -> str:
    """A name as OBJ allows it: not empty and without blanks."""
    return "_".join(name.split()) or "unnamed"
