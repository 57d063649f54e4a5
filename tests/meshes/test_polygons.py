import numpy as np
import pytest

from sdslab.meshes.mesh_file import triangulate


def star(corners: int, seed: int) -> np.ndarray:
    """A polygon without crossings, counter-clockwise, most of them far from convex."""
    generator = np.random.default_rng(seed)
    angle = np.sort(generator.random(corners) * 0.9 + np.arange(corners)) * 2 * np.pi / corners
    radius = generator.uniform(0.1, 1, corners)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


KEYHOLE = np.array(  # a square with a square hole, which a bridge leads to and back from
    [[0, 0], [3, 0], [3, 3], [0, 3], [0, 0], [1, 1], [1, 2], [2, 2], [2, 1], [1, 1]], np.float64
)
COMB = np.array([[0, 0], [5, 0], [5, 2], [4, 2], [4, 1], [3, 1], [3, 2], [2, 2], [2, 1], [1, 1],
                 [1, 2], [0, 2]], np.float64)  # fmt: skip


def signed_area(points: np.ndarray) -> np.ndarray:
    x, y = points[..., 0], points[..., 1]
    return (x * np.roll(y, -1, axis=-1) - y * np.roll(x, -1, axis=-1)).sum(-1) / 2


@pytest.mark.parametrize(
    "outline",
    [KEYHOLE, COMB, *(star(n, seed) for n in (5, 6, 9, 30, 100) for seed in range(3))],
    ids=lambda outline: f"{len(outline)} corners",
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_triangles_fill_a_polygon_once(outline: np.ndarray, axis: int):
    points = np.roll(np.insert(outline, 2, 0.0, axis=1), axis, axis=1)
    triangles, polygon = triangulate(np.array([len(outline)]), points, [])
    assert len(triangles) == len(outline) - 2
    assert (polygon == 0).all()
    assert set(triangles.reshape(-1)) == set(range(len(outline)))
    areas = signed_area(outline[triangles])
    assert areas.min() >= 0
    assert areas.sum() == pytest.approx(signed_area(outline))
    # a point of the plane lies in one triangle where it lies in the polygon, else in none
    samples = np.random.default_rng(0).uniform(outline.min(0), outline.max(0), (300, 2))
    corners = outline[triangles]
    inside = np.ones((len(samples), len(triangles)), bool)
    for k in range(3):
        a, b = corners[:, k], corners[:, (k + 1) % 3]
        side, offset = b - a, samples[:, None] - a
        inside &= side[:, 0] * offset[..., 1] - side[:, 1] * offset[..., 0] > 0
    assert inside.sum(1).max() <= 1


def test_polygons_of_all_sizes_keep_their_order():
    outlines = [star(n, 1) for n in (7, 3, 4, 7, 5, 4)]
    sizes = np.array([*(len(o) for o in outlines[:3]), 2, *(len(o) for o in outlines[3:])])
    flat = np.concatenate([*outlines[:3], np.zeros((2, 2)), *outlines[3:]])
    triangles, polygon = triangulate(sizes, np.insert(flat, 2, 0.0, axis=1), [])
    assert polygon.tolist() == [0] * 5 + [1] + [2] * 2 + [4] * 5 + [5] * 3 + [6] * 2
    areas = signed_area(flat[triangles])
    expected = [float(signed_area(o)) for o in outlines]
    sums = np.bincount(polygon, areas)[[0, 1, 2, 4, 5, 6]]
    assert sums.tolist() == pytest.approx(expected)
