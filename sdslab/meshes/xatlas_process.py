"""xatlas in a process of its own: `python -m sdslab.meshes.xatlas_process`.

xatlas holds Python's lock while it works, reports nothing, and could only be stopped with the
process. Here it reads two arrays from stdin and writes its result to stdout.
"""

import io
import sys

import numpy as np

ATLAS_SIZE = 1024
PADDING = 3  # texels between charts, two of which are left where the atlas grows by half
LARGE_MESH = 20_000  # faces from which charts are kept small: growing one takes quadratic time
LARGEST_CHART = 1 / 50  # of the surface, then


def pack_arrays(*arrays: np.ndarray) -> bytes:
    """Arrays as bytes, never pickled."""
    buffer = io.BytesIO()
    for array in arrays:
        np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def unpack_arrays(content: bytes, count: int) -> list[np.ndarray]:
    """What `pack_arrays` packed."""
    buffer = io.BytesIO(content)
    return [np.load(buffer, allow_pickle=False) for _ in range(count)]


def generate_atlas(positions: np.ndarray, faces: np.ndarray) -> list[np.ndarray]:
    """Cuts, flattens and packs a surface.

    Args:
        positions: [v, 3] float32, within about [−1, 1].
        faces: [f, 3] uint32.

    Returns:
        For each new vertex the one that it comes from [n]; the new faces [f, 3], in the same order;
        uv [n, 2] in [0, 1]; and the number of charts [1].
    """
    import xatlas

    a, b, c = positions[faces.astype(np.int64)].swapaxes(0, 1).astype(np.float64)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    chart, pack = xatlas.ChartOptions(), xatlas.PackOptions()
    if len(faces) > LARGE_MESH:
        chart.max_chart_area = float(area * LARGEST_CHART)
    pack.padding = PADDING
    pack.bilinear = True
    pack.blockAlign = True
    for resolution in (ATLAS_SIZE, 0):  # 0: one page, of any size
        pack.resolution = resolution
        atlas = xatlas.Atlas()
        atlas.add_mesh(positions, faces)
        atlas.generate(chart, pack)
        if atlas.atlas_count <= 1:
            break
    source, new_faces, uv = atlas[0]
    # the binding divides by width and height: one scale for both keeps charts undistorted
    size = np.array([atlas.width, atlas.height], np.float64)
    square = uv * size / max(size.max(), 1)
    charts = np.array([atlas.chart_count])
    return [source.astype(np.int64), new_faces.astype(np.int64), square, charts]


if __name__ == "__main__":
    positions, faces = unpack_arrays(sys.stdin.buffer.read(), 2)
    sys.stdout.buffer.write(pack_arrays(*generate_atlas(positions, faces)))
