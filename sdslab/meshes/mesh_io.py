"""Meshes in: files of six formats and the procedural ones that ship."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sdslab.errors import UserError, one_line
from sdslab.meshes.gltf_file import read_gltf
from sdslab.meshes.mesh import Mesh, Up, z_up_note
from sdslab.meshes.mesh_assembly import Unwrapping, assemble_mesh
from sdslab.meshes.mesh_file import MeshFile, MeshFileError
from sdslab.meshes.mesh_folder import LARGEST_FILE, MeshFolder
from sdslab.meshes.obj_file import read_obj
from sdslab.meshes.off_stl_files import read_off, read_stl
from sdslab.meshes.ply_file import read_ply
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES

READERS: dict[str, Callable[[bytes, MeshFolder], MeshFile]] = {
    ".obj": read_obj,
    ".glb": read_gltf,
    ".gltf": read_gltf,
    ".ply": read_ply,
    ".stl": read_stl,
    ".off": read_off,
}


def load_mesh(
    source: str | Path,
    unwrap: Unwrapping = "auto",
    progress: Callable[[float], None] | None = None,
    smooth: bool = False,
    up: Up | None = None,
    file: MeshFile | None = None,
) -> Mesh:
    """Reads a mesh; what is wrong with it is repaired and told in its notes, or refused.

    Only files in the mesh's own folder and below are read.

    Args:
        source: an OBJ, GLB, glTF, PLY, STL or OFF file, or a name of `PROCEDURAL_MESHES`. A file of
            that name wins.
        unwrap: "auto" makes new texture coordinates where the file's own cannot hold a texture,
            "always" makes them anyway, "never" refuses such a mesh.
        progress: gets a share in [0, 1] while texture coordinates are made.
        smooth: computes smooth normals even where the file has normals of its own.
        up: which of the file's axes points up. None takes +Y, and adds a note where the shape or
            the kind of file says +Z.
        file: what `read_mesh_file` made of it already.

    Raises:
        UserError: there is no such file or name, it holds no mesh, or its texture coordinates
            cannot be used or made.
    """
    path = Path(source)
    if not os.path.isfile(path):
        if str(source) in PROCEDURAL_MESHES:
            if up not in (None, "y"):
                raise UserError(
                    f"--up is for mesh files, got {up} for the built-in {str(source)!r}, which has "
                    f"+Y up; leave it out"
                )
            return PROCEDURAL_MESHES[str(source)](unwrap, progress)
        raise UserError(
            f"mesh must be an existing file or one of {', '.join(PROCEDURAL_MESHES)}, got "
            f"{str(source)!r}"
        )
    kind = path.suffix.lower()
    if kind not in READERS:
        raise UserError(
            f"mesh must be a file that ends in one of {', '.join(READERS)}, got {str(source)!r}; "
            f"convert it"
        )
    try:
        file = file or read_mesh_file(path, MeshFolder(path))
        if smooth:
            file = dataclasses.replace(file, normals=None)
        mesh = assemble_mesh(one_line(path.stem), file, unwrap, progress)
    except (MeshFileError, OSError) as error:
        raise UserError(
            f"mesh must be a sound {kind[1:].upper()} file, got {str(source)!r}: "
            f"{' '.join(str(error).split())}; open it in a modelling program and export it again"
        ) from error
    note = z_up_note(mesh.used_positions, kind == ".stl") if up is None else None
    return dataclasses.replace(mesh, up=up or "y", notes=mesh.notes + ((note,) if note else ()))


def read_mesh_file(path: Path, folder: MeshFolder) -> MeshFile:
    """What a mesh file of one of the `READERS`' kinds holds, as it stands there.

    Args:
        path: of the file.
        folder: reads the files that it names.

    Raises:
        MeshFileError: it is not sound, or too large.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size == 0:
        raise MeshFileError("it is empty")
    if size > LARGEST_FILE:
        raise MeshFileError(f"it is larger than {LARGEST_FILE >> 20} MiB")
    content = path.read_bytes()
    if content.startswith(b"PK\3\4"):
        raise MeshFileError("it is a zip archive; unpack it")
    with np.errstate(all="ignore"):
        return READERS[path.suffix.lower()](content, folder)
