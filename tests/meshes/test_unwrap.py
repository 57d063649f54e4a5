import re
from pathlib import Path

import numpy as np
import pytest

from sdslab.meshes import unwrap as unwrap_module
from sdslab.meshes.procedural_meshes import torus
from sdslab.meshes.unwrap import inspect_uv, unwrap, uv_coverage
from sdslab.meshes.uv_layout import atlas_tiles

SQUARE = np.array([[[0, 0], [1, 0], [1, 1]], [[0, 0], [1, 1], [0, 1]]], np.float64)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdslab.files.disk_cache.cache_folder", lambda: tmp_path / "cache")


def cube() -> tuple[np.ndarray, np.ndarray]:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
    quads = np.array(
        [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    )
    return corners, np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


@pytest.mark.parametrize("shift", [0.0, 0.3, -0.05, 7.77])
def test_a_square_covers_the_texture_once_wherever_it_lies(shift: float):
    coverage = uv_coverage(SQUARE + shift, resolution=64)
    assert coverage.fill == 1
    assert coverage.overlap == 0


@pytest.mark.parametrize("scale", [2, 3, 20])
def test_repetition_is_overlap(scale: int):
    coverage = uv_coverage(SQUARE * scale, resolution=32)
    assert coverage.fill == coverage.overlap == 1


def test_overlap_is_the_area_that_two_triangles_share():
    half = np.array([[[0, 0], [0.5, 0], [0.5, 0.5]], [[0.25, 0], [0.5, 0], [0.5, 0.25]]])
    coverage = uv_coverage(half, resolution=1000)
    assert coverage.fill == pytest.approx(1 / 8, rel=0.01)
    assert coverage.overlap == pytest.approx(1 / 4, rel=0.01)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_triangulation_covers_every_texel_once(seed: int):
    from scipy.spatial import Delaunay

    inner = np.random.default_rng(seed).random((300, 2))
    points = np.concatenate([inner, [[0, 0], [1, 0], [0, 1], [1, 1]]])
    coverage = uv_coverage(points[Delaunay(points).simplices], resolution=200)
    assert coverage.overlap == 0
    assert coverage.fill == 1


def test_counts_agree_with_a_plain_loop():
    corners = np.random.default_rng(0).random((6, 3, 2)) * 2 - 0.5
    n, counts = 20, np.zeros((20, 20), int)
    for a, b, c in corners:
        for y in range(-n, 2 * n):
            for x in range(-n, 2 * n):
                p = (np.array([x, y]) + 0.5) / n
                sides = [np.linalg.det([q - p, r - p]) for q, r in ((a, b), (b, c), (c, a))]
                counts[y % n, x % n] += min(sides) > 0 or max(sides) < 0
    coverage = uv_coverage(corners, resolution=n)
    assert coverage.fill == (counts > 0).mean()
    assert coverage.overlap == (counts > 1).sum() / (counts > 0).sum()


def test_slivers_across_many_textures_are_not_counted():
    uv = np.random.default_rng(0).random((900_000, 2)) * [1e-9, 900]
    faces = np.arange(900_000).reshape(-1, 3)
    report = inspect_uv(np.random.default_rng(1).random((900_000, 3)), faces, uv)
    assert report.problem is not None
    assert "repeat the texture" in report.problem


def test_slivers_across_the_whole_texture_are_not_searched():
    ends = np.random.default_rng(0).random((5000, 2, 2)) * 0.5
    uv = np.stack((ends[:, 0], 1 - ends[:, 1], ends[:, 0] + 1e-5), 1).reshape(-1, 2)
    faces = np.arange(15_000).reshape(-1, 3)
    report = inspect_uv(np.random.default_rng(1).random((15_000, 3)), faces, uv)
    assert report.problem is not None
    assert "thin faces cross the texture" in report.problem


@pytest.mark.parametrize(
    ("uv", "problem"),
    [
        (None, "no texture coordinates"),
        (np.full((3, 2), np.nan), "no texture coordinates on 100.0%"),
        (np.zeros((3, 2)), "has no area in the texture"),
        (np.array([[0, 0], [0.01, 0], [0, 0.01]]), "use 0.0% of the texture"),
        (np.array([[0, 0], [1e30, 0], [0, 1]]), r"up to 1e\+30"),
        (np.array([[0, 0], [2.0, 0], [0, 2]]), "overlap on 50%"),
        (np.array([[0, 0], [20.0, 0], [20, 0.04]]), "runs over the texture 20 times"),
    ],
    ids=["absent", "nan", "point", "tiny", "huge", "repeated", "long"],
)
def test_unusable_texture_coordinates_are_named(uv: np.ndarray | None, problem: str):
    positions = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float64)
    report = inspect_uv(positions, np.array([[0, 1, 2]]), uv)
    assert report.problem is not None
    assert re.search(problem, report.problem)


def test_tiles_lie_apart_and_lead_back():
    own = [np.array([[0.0, 0.0], [1, 1]]), np.array([[-3.0, 0.5], [2, 1.5]]), np.zeros((1, 2))]
    tiles = atlas_tiles(own)
    placed = [tile.place(uv) for tile, uv in zip(tiles, own, strict=True)]
    cells = [np.unique(np.floor(2 * uv), axis=0) for uv in placed]
    assert all(len(c) == 1 for c in cells)
    assert len(np.unique(np.concatenate(cells), axis=0)) == 3
    for tile, uv, there in zip(tiles, own, placed, strict=True):
        np.testing.assert_allclose(tile.origin_of(there), uv, atol=1e-12)


def test_a_cube_is_cut_without_overlap_and_in_order():
    positions, faces = cube()
    shares: list[float] = []
    result = unwrap(positions / 2, faces, shares.append)
    assert (np.diff(result.source_vertex) >= 0).all()
    np.testing.assert_array_equal(result.source_vertex[result.faces], faces)
    assert 0 <= result.uv.min() <= result.uv.max() <= 1
    report = inspect_uv(positions[result.source_vertex], result.faces, result.uv)
    assert report.problem is None
    assert report.overlap == 0
    assert result.fill > 0.3
    assert shares[-1] == 1
    assert sorted(shares) == shares


def test_charts_lie_two_texels_apart_at_1024():
    positions, faces = cube()
    result = unwrap(positions / 2, faces)
    step = 1 / 1024
    alone = uv_coverage(result.uv[result.faces])
    assert alone.overlap == 0
    charts = connected(result.faces)
    centre = result.uv[result.faces]
    for dx, dy in ((2, 0), (0, 2), (1.4, 1.4)):
        for chart in np.unique(charts):
            moved = centre.copy()
            moved[charts == chart] += np.array([dx, dy]) * step
            assert uv_coverage(moved).overlap == 0


def connected(faces: np.ndarray) -> np.ndarray:
    label = np.arange(faces.max() + 1)
    for _ in range(len(label)):
        np.minimum.at(label, faces.reshape(-1), np.repeat(label[faces].min(1), 3))
    return label[faces[:, 0]]


def test_vertices_of_no_face_are_kept():
    positions, faces = cube()
    padded = np.insert(positions / 2, 3, 0.0, axis=0)
    result = unwrap(padded, faces + (faces >= 3))
    assert set(result.source_vertex) == set(range(9))
    assert np.isfinite(result.uv).all()


def test_the_second_time_comes_from_disk(monkeypatch: pytest.MonkeyPatch):
    mesh = torus()
    positions, faces = mesh.positions.numpy() / 1.4, mesh.faces.long().numpy()
    first = unwrap(positions, faces)
    monkeypatch.setattr(unwrap_module, "_run_xatlas", lambda *_: pytest.fail("ran again"))
    again = unwrap(positions, faces)
    np.testing.assert_array_equal(first.uv, again.uv)
    np.testing.assert_array_equal(first.faces, again.faces)
