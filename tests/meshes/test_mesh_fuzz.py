"""Whatever a file holds: a mesh of finite arrays, or one line; and no file elsewhere is opened."""

import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdslab.errors import UserError
from sdslab.files import disk_cache
from sdslab.meshes.export_glb import export_glb
from sdslab.meshes.export_obj import export_obj
from sdslab.meshes.material import constant_material
from sdslab.meshes.mesh import Mesh
from sdslab.meshes.mesh_io import load_mesh
from sdslab.meshes.procedural_meshes import sphere

watched: list[str] | None = None
numbers = st.sampled_from(["0", "1", "-1", "0.5", "2", "1e-30", "1e30", "1e308", "nan", "inf", "x"])
indices = st.integers(-5, 9)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if watched is not None and event == "open" and isinstance(arguments[0], str | os.PathLike):
        watched.append(os.fspath(arguments[0]))


sys.addaudithook(_watch)


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """The names of all files that are opened meanwhile."""
    global watched
    watched = []
    try:
        yield watched
    finally:
        watched = None


@pytest.fixture(autouse=True, scope="module")
def _without_xatlas_process() -> Iterator[None]:
    """New texture coordinates come from this process: starting one takes half a second."""
    from sdslab.meshes import unwrap, xatlas_process

    def run(positions: np.ndarray, faces: np.ndarray, progress: object) -> dict[str, torch.Tensor]:
        del progress
        arrays = xatlas_process.generate_atlas(positions, faces.astype(np.uint32))
        names = ("source", "faces", "uv", "charts")
        return {n: torch.from_numpy(a) for n, a in zip(names, arrays, strict=True)}

    load_mesh("sphere", "never")  # imports what is imported lazily
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as cache:
        patch.setattr(unwrap, "_run_xatlas", run)
        patch.setattr("sdslab.files.disk_cache.cache_folder", lambda: Path(cache))
        yield


CODE = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]))


def check(mesh: Mesh) -> None:
    for name in ("positions", "uv", "normals", "tangents", "render_positions"):
        array = getattr(mesh, name)
        assert len(array) == len(mesh.positions), name
        assert torch.isfinite(array).all(), name
    assert len(mesh.source_vertex) == len(mesh.positions)
    assert 0 <= mesh.faces.min() <= mesh.faces.max() < len(mesh.positions)
    ones = torch.ones(len(mesh.positions))
    torch.testing.assert_close(mesh.normals.norm(dim=1), ones, rtol=0, atol=1e-5)
    torch.testing.assert_close(mesh.tangents[:, :3].norm(dim=1), ones, rtol=0, atol=1e-5)
    assert (mesh.tangents[:, :3] * mesh.normals).sum(1).abs().max() < 1e-5
    assert (mesh.tangents[:, 3].abs() == 1).all()
    assert sum(len(part.faces) for part in mesh.parts) == len(mesh.faces)
    assert len({part.name for part in mesh.parts}) == len(mesh.parts)
    assert "\n" not in "; ".join(mesh.notes)
    if mesh.source_material is not None:
        assert torch.isfinite(mesh.source_material.maps).all()
        assert mesh.source_material.corner_uv.shape == (len(mesh.faces), 3, 2)


def check_export(mesh: Mesh) -> None:
    """What came in goes out: as a .glb that holds the same triangles, whatever their scale."""
    with tempfile.TemporaryDirectory() as folder:
        export_glb(mesh, constant_material(4, 4), Path(folder) / "mesh.glb")
        export_obj(mesh, constant_material(4, 4), Path(folder))
        for name in ("mesh.glb", "mesh.obj"):
            try:
                reloaded = load_mesh(Path(folder) / name)
            except UserError as error:  # float32 may have flattened its last triangle
                assert "no triangle with an area" in str(error)  # noqa: PT017
                continue
            if len(reloaded.faces) == len(mesh.faces):
                apart = (
                    reloaded.positions[reloaded.faces.long()] - mesh.positions[mesh.faces.long()]
                )
                # Repairs may start a triangle at another corner.
                assert apart.sum(1).abs().max() * mesh.normalization.scale < 1e-3


def load_safely(files: dict[str, bytes], name: str) -> Mesh | None:
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            (Path(folder) / file).write_bytes(content)
        mesh = None
        with opened_files() as opened:
            try:
                mesh = load_mesh(Path(folder) / name)
            except UserError as error:
                assert "\n" not in str(error)  # noqa: PT017
        assert str(Path(folder) / name) in opened
        # Imports, and what is kept between runs of xatlas.
        own = (folder, str(disk_cache.cache_folder()), *CODE)
        assert [f for f in opened if not f.startswith(own)] == []
    if mesh is not None:
        check(mesh)
        check_export(mesh)
    return mesh


@st.composite
def obj_files(draw: st.DrawFn) -> str:
    lines = ["mtllib " + draw(st.sampled_from(["a.mtl", "../../etc/passwd", "/etc/passwd", ""]))]
    for keyword, size in (("v", 3), ("vt", 2), ("vn", 3)):
        rows = draw(st.lists(st.lists(numbers, min_size=size, max_size=size), max_size=7))
        lines += [" ".join([keyword, *row]) for row in rows]
    corner = st.one_of(
        indices.map(str), st.tuples(indices, indices, indices).map(lambda c: "/".join(map(str, c)))
    )
    for polygon in draw(st.lists(st.lists(corner, max_size=7), max_size=6)):
        lines += [draw(st.sampled_from(["o a", "g b", "usemtl m", "s 1", "#"]))]
        lines += [" ".join(["f", *polygon])]
    return "\n".join(lines)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(obj_files())
@example("v 0 0 0\nv 1e30 0 0\nv 0 1e30 0\nf 1 2 3")
@example("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n" + "f 1 1 2\n" * 500)
@example("mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nusemtl m\nf 1/1 2/1 3/1")
def test_any_obj(text: str):
    material = b"newmtl m\nmap_Kd ../../../etc/passwd\nnorm /etc/passwd\nmap_Pr big.png\n"
    load_safely({"a.obj": text.encode(), "a.mtl": material}, "a.obj")


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(*[st.floats(-2, 2, width=32)] * 3), min_size=3, max_size=12),
    st.data(),
)
def test_any_triangles(points: list[tuple[float, float, float]], data: st.DataObject):
    index = st.integers(0, len(points) - 1)
    faces = data.draw(st.lists(st.tuples(index, index, index), min_size=1, max_size=15))
    lines = [f"OFF\n{len(points)} {len(faces)} 0", *(f"{x} {y} {z}" for x, y, z in points)]
    lines += [f"3 {a} {b} {c}" for a, b, c in faces]
    load_safely({"a.off": "\n".join(lines).encode()}, "a.off")


def exported(kind: str) -> bytes:
    import trimesh
    from trimesh.visual import TextureVisuals

    mesh = sphere()
    visual = TextureVisuals(uv=mesh.uv.numpy())
    shape = trimesh.Trimesh(
        mesh.positions.numpy(), mesh.faces.numpy(), visual=visual, process=False
    )
    content: Any = shape.export(file_type=kind)
    return content if isinstance(content, bytes) else content.encode()


@pytest.mark.parametrize("kind", ["glb", "ply", "stl", "off", "obj"])
def test_truncated_and_damaged_files(kind: str):
    content = exported(kind)
    assert load_safely({f"a.{kind}": content}, f"a.{kind}") is not None
    random = np.random.default_rng(0)
    for k in range(12):
        damaged = bytearray(content[: random.integers(1, len(content))] if k % 2 else content)
        for at in random.integers(0, min(len(damaged), 2000), size=3):
            damaged[at] = int(random.integers(256))
        load_safely({f"a.{kind}": bytes(damaged)}, f"a.{kind}")


@pytest.mark.parametrize("kind", ["glb", "gltf", "ply", "stl", "off", "obj"])
def test_any_bytes(kind: str):
    random = np.random.default_rng(1)
    for size in (1, 20, 84, 5000):
        content = random.bytes(size)
        for start in (b"", b"glTF\2\0\0\0", b"ply\n", b"OFF\n", b"solid ", b"PK\3\4", b"{"):
            assert load_safely({f"a.{kind}": start + content}, f"a.{kind}") is None


def test_a_picture_is_not_decoded_that_claims_to_be_huge():
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    png += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT" + b"\0" * 4
    text = b"mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nusemtl m\n"
    text += b"f 1/1 2/2 3/3\n"
    files = {"a.obj": text, "a.mtl": b"newmtl m\nmap_Kd big.png\n", "big.png": png}
    mesh = load_safely(files, "a.obj")
    assert mesh is not None
    assert any("pixels ignored" in note for note in mesh.notes)
