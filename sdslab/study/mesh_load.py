"""One mesh file loaded by us or by trimesh. Imports nothing heavy: each load is a fresh process's.

The peak memory is the whole process's, with what the loader imports.
"""

import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sdslab.errors import UserError
from sdslab.runs.from_toml import Between

LOAD_BUDGET = 1e-6  # of coordinates in [−1, 1]
Corners = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Positions [f, 3, 3] and texture coordinates [f, 3, 2] of the corners, in the file's order."""


@dataclass(frozen=True)
class LoadTiming:
    """A mesh file loaded by us and by trimesh, each time in a fresh process."""

    name: str
    label: str
    file: Literal["obj", "ply", "glb"]
    faces: Annotated[int, Between(2, 5_000_000)]
    """About so many, with texture coordinates."""
    repeats: int | None = None
    """In place of the settings' own."""


def time_loads(
    case: LoadTiming, repeats: int
) -> tuple[float, dict[str, list[tuple[float, float]]]]:
    """Times loads in fresh processes, ours and trimesh's by turns, after both gave the same mesh.

    Returns:
        How far the two meshes differ; CPU milliseconds and peak MB of each load, by loader.

    Raises:
        UserError: they differ, or there is no trimesh.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"grid.{case.file}"
        write_grid(path, case.faces)
        difference = disagreement(path)  # this compiles what is kept on disk, too
        if not difference <= LOAD_BUDGET:
            raise UserError(
                f"{case.name}: ours must equal trimesh to {LOAD_BUDGET:g}, got {difference:.3g}; "
                f"no speed is reported of a wrong result"
            )
        measured: dict[str, list[tuple[float, float]]] = {loader: [] for loader in LOADERS}
        for _ in range(repeats):
            for loader, results in measured.items():
                with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                    results.append(pool.submit(measure_load, loader, path).result())
    return difference, measured


def write_grid(path: Path, faces: int) -> None:
    """Writes a wavy square of about ``faces`` triangles with texture coordinates."""
    side = max(1, round((faces / 2) ** 0.5))
    v, u = (axis.reshape(-1) / side for axis in np.mgrid[: side + 1, : side + 1])
    positions = np.stack([2 * u - 1, 2 * v - 1, 0.1 * np.sin(9 * u) * np.cos(7 * v)], axis=1)
    positions, uv = positions.astype(np.float32), np.stack([u, v], axis=1).astype(np.float32)
    first = (np.arange(side)[:, None] * (side + 1) + np.arange(side)).reshape(-1, 1)
    corners = ((0, 1, side + 2), (0, side + 2, side + 1))
    triangles = np.concatenate([first + np.array(c) for c in corners])
    match path.suffix:
        case ".obj":
            with path.open("w", encoding="ascii") as file:
                np.savetxt(file, positions, fmt="v %.6f %.6f %.6f")
                np.savetxt(file, uv, fmt="vt %.6f %.6f")
                np.savetxt(file, (triangles + 1).repeat(2, axis=1), fmt="f %d/%d %d/%d %d/%d")
        case ".ply":
            vertex = np.concatenate([positions, uv], axis=1).astype("<f4")
            face = np.empty(len(triangles), [("size", "u1"), ("indices", "<i4", 3)])
            face["size"], face["indices"] = 3, triangles
            properties = "".join(f"property float {name}\n" for name in ("x", "y", "z", "s", "t"))
            header = (
                f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertex)}\n{properties}"
                f"element face {len(face)}\nproperty list uchar int vertex_indices\nend_header\n"
            )
            path.write_bytes(header.encode() + vertex.tobytes() + face.tobytes())
        case _:
            trimesh = import_trimesh()
            visual = trimesh.visual.TextureVisuals(uv=uv)
            mesh = trimesh.Trimesh(positions, triangles, process=False, visual=visual)
            path.write_bytes(mesh.export(file_type="glb"))


def import_trimesh() -> Any:
    """The module.

    Raises:
        UserError: it is not installed.
    """
    try:
        import trimesh
        import trimesh.visual
    except ImportError as error:
        raise UserError("loads are compared with trimesh, got none; pip install trimesh") from error
    return trimesh


def load_ours(path: Path) -> Callable[[], Corners]:
    """Loads by `load_mesh`; the corners are made when called."""
    from sdslab.meshes.mesh_io import load_mesh

    mesh = load_mesh(path)
    faces = mesh.faces.numpy()
    return lambda: (mesh.positions.numpy()[faces], mesh.uv.double().numpy()[faces])


def load_trimesh(path: Path) -> Callable[[], Corners]:
    """Loads by trimesh, which neither merges nor checks anything; as `load_ours`."""
    mesh = import_trimesh().load(path, process=False, force="mesh")
    return lambda: (mesh.vertices[mesh.faces], np.asarray(mesh.visual.uv)[mesh.faces])


LOADERS = {"ours": load_ours, "trimesh": load_trimesh}


def disagreement(path: Path) -> float:
    """The largest difference of the two loaders' corners; infinite where faces differ in number."""
    ours, theirs = (load(path)() for load in LOADERS.values())
    if [a.shape for a in ours] != [a.shape for a in theirs]:
        return float("inf")
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def measure_load(loader: str, path: Path) -> tuple[float, float]:
    """CPU milliseconds of a load, and the peak memory of this process in MB."""
    if loader == "ours":
        import sdslab.meshes.mesh_io  # noqa: F401
    else:
        import_trimesh()
    start = time.process_time()
    loaded = LOADERS[loader](path)
    milliseconds = (time.process_time() - start) * 1000
    del loaded
    return milliseconds, _peak_mb()


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    # Where Linux has it, since getrusage counts what the parent held before it started this process
    if status.exists() and (matched := re.search(r"VmHWM:\s+(\d+)", status.read_text("ascii"))):
        return int(matched[1]) / 1024
    from sdslab.machine import peak_memory_mb, resolve_device

    return peak_memory_mb(resolve_device("cpu"))["process"]
