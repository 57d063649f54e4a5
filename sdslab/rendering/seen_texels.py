"""Which texels were looked at, and what the others take from them."""

import torch
from torch import Tensor

from sdslab.meshes.mesh import Mesh
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.renderer import Surface
from sdslab.rendering.texel_coverage import rasterize_texels
from sdslab.rendering.torch_reference import level_of_detail


class SeenTexels:
    """Marks, for each pixel, the texel under its centre at the mip level of its footprint.

    A look-up blends a few more texels around it, of this level and of the next coarser one: they
    are left to the pixels in whose middle they lie.

    Args:
        size: (height, width) of the texture, powers of two.
        device: of the surfaces to come.

    Attributes:
        marks: [n] bool, all levels one after the other; what a checkpoint holds.
    """

    def __init__(self, size: tuple[int, int], device: torch.device | str = "cpu") -> None:
        self.size = size
        sizes = [size]
        while sizes[-1] != (1, 1):
            sizes.append((max(1, sizes[-1][0] // 2), max(1, sizes[-1][1] // 2)))
        self._sizes = torch.tensor(sizes, device=device)  # [levels, 2]
        counts = self._sizes.prod(1)
        self._starts = counts.cumsum(0) - counts
        self.marks = torch.zeros(int(counts.sum()), dtype=torch.bool, device=device)

    @torch.no_grad()
    def mark(self, surface: Surface) -> None:
        """Adds what some pictures show."""
        level = level_of_detail(surface.uv_derivatives, *self.size).long()
        level = level.clamp_max(len(self._sizes) - 1)
        uv = surface.uv - surface.uv.floor()
        height, width = self._sizes[level].unbind(1)
        row = (uv[:, 1] * height).long().clamp_max(height - 1)
        column = (uv[:, 0] * width).long().clamp_max(width - 1)
        self.marks[self._starts[level] + row * width + column] = True

    def texels(self) -> Tensor:
        """[height, width] bool: texels that were marked, themselves or in a coarser level."""
        seen = torch.zeros(self.size, dtype=torch.bool, device=self.marks.device)
        starts, sizes = self._starts.tolist(), self._sizes.tolist()
        for start, (height, width) in zip(starts, sizes, strict=True):
            marks = self.marks[start : start + height * width].view(height, width)
            for axis, size in enumerate(self.size):
                marks = marks.repeat_interleave(size // marks.shape[axis], axis)
            seen |= marks
        return seen


def fill_unseen(maps: Tensor, seen: Tensor, mesh: Mesh) -> Tensor:
    """Copies to each covered texel that was not seen the nearest seen one, on the surface in 3-D.

    Args:
        maps: [h, w, c], on the CPU.
        seen: [h, w] bool.
        mesh: whose texture it is.

    Returns:
        A new [h, w, c].
    """
    from scipy.spatial import KDTree

    height, width = maps.shape[:2]
    corners = mesh.render_positions[mesh.faces.long()]
    # The rasteriser takes two attributes as texture coordinates: give it those before the place.
    attributes = torch.cat((mesh.uv[mesh.faces.long()], corners), dim=-1)
    backend = CpuBackend()
    texels = rasterize_texels(mesh, (height, width), backend, attributes)
    place = texels.attributes[:, 2:]
    known = seen.view(-1)[texels.pixel]
    result = maps.clone().view(height * width, -1)
    if known.all() or not known.any():
        return result.view_as(maps)
    _, nearest = KDTree(place[known].numpy()).query(place[~known].numpy())
    result[texels.pixel[~known]] = result[texels.pixel[known][torch.from_numpy(nearest)]]
    return result.view_as(maps)
