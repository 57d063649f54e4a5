"""Several textures side by side in one: a square grid of tiles, row after row from v = 0."""

from dataclasses import dataclass

import numpy as np

from sdslab.meshes.mesh_file import Floats

MARGIN = 4 / 1024  # around every tile, so that mip levels do not mix neighbours


@dataclass(frozen=True)
class AtlasTile:
    """Where a rectangle of one texture lies in the joint one.

    Attributes:
        low: (u, v) of its lower corner in its own texture.
        size: its extent there.
        origin: (u, v) of the tile, margin included.
        side: of the tile, margin included.
    """

    low: tuple[float, float]
    size: tuple[float, float]
    origin: tuple[float, float]
    side: float

    @property
    def _scale(self) -> Floats:
        return (self.side - 2 * MARGIN) / np.array(self.size)

    def place(self, uv: Floats) -> Floats:
        """[..., 2] from its own texture to the joint one."""
        return (uv - self.low) * self._scale + self.origin + MARGIN

    def origin_of(self, uv: Floats) -> Floats:
        """[..., 2] from the joint texture back; the margin continues the rectangle."""
        return (uv - self.origin - MARGIN) / self._scale + self.low


def atlas_tiles(corner_uvs: list[Floats]) -> list[AtlasTile]:
    """One tile for each set of texture coordinates [..., 2], none empty.

    What lies within [0, 1]² keeps that square; else the bounding box is fitted in.
    """
    grid = int(np.ceil(np.sqrt(len(corner_uvs))))
    tiles = []
    for k, uv in enumerate(corner_uvs):
        low, high = uv.reshape(-1, 2).min(0), uv.reshape(-1, 2).max(0)
        if (low >= -1e-6).all() and (high <= 1 + 1e-6).all():
            low, high = np.zeros(2), np.ones(2)
        size = np.maximum(high - low, 1e-9)
        tiles.append(
            AtlasTile(
                (float(low[0]), float(low[1])),
                (float(size[0]), float(size[1])),
                (k % grid / grid, k // grid / grid),
                1 / grid,
            )
        )
    return tiles
