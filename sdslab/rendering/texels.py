"""A texture's texels: which of them faces cover and views looked at, and what the others take."""

import itertools
import math
from dataclasses import fields, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.kernels.compiled import njit
from sdslab.machine import run_all, split, worker_count
from sdslab.meshes.material import CHANNELS, NORMAL, encode_normals
from sdslab.meshes.mesh import Mesh
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.render_backend import Fragments, RenderBackend, level_of_detail
from sdslab.rendering.renderer import Surface


def rasterize_texels(
    mesh: Mesh, resolution: tuple[int, int], backend: RenderBackend, attributes: Tensor
) -> Fragments:
    """Interpolates per-corner attributes at the centres of the texels that a face covers.

    Faces that cross the border of [0, 1]² come in on the other side, as look-ups that wrap do.

    Args:
        mesh: its `uv` place the faces.
        resolution: (height, width) of the texture.
        backend: any; the CPU's is exact.
        attributes: [f, 3, k] float32 per face corner, k ≥ 2.

    Returns:
        One picture of texels; its rows run as the texture's, row 0 at v = 0. Where faces overlap,
        the first one counts.
    """
    height, width = resolution
    corner_uv = mesh.uv[mesh.faces.long()]  # [f, 3, 2]
    corner_uv = corner_uv - corner_uv.amin(1, keepdim=True).floor()
    free = torch.ones(height * width, dtype=torch.bool)
    pictures = []
    for column, row in itertools.product(*(range(int(n)) for n in corner_uv.amax((0, 1)).ceil())):
        # What reaches beyond 1 is drawn again, shifted back, by the faces that reach there.
        shift = corner_uv.new_tensor([column, row])
        reaching = (corner_uv.amax(1) > shift).all(1).nonzero()[:, 0]
        if not len(reaching):
            continue
        x, y = (2 * (corner_uv[reaching].flatten(0, 1) - shift) - 1).unbind(-1)
        # A picture's top is y = +1 and a texture's first row v = 0.
        clip = torch.stack((x, -y, torch.zeros_like(x), torch.ones_like(x)), -1)[None]
        faces = torch.arange(len(x), dtype=torch.int32).view(-1, 3)
        ids = backend.visibility(clip, faces, resolution) * free.view(1, height, width)
        free &= ids.view(-1) == 0
        seen = backend.resolve(clip, faces, ids.int(), attributes[reaching].flatten(0, 1))
        pictures.append(replace(seen, face=reaching[seen.face]))
    order = torch.cat([picture.pixel for picture in pictures]).argsort()  # each texel occurs once

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(picture, name) for picture in pictures])[order]

    names = [field.name for field in fields(Fragments) if field.name != "shape"]
    return Fragments((1, height, width), **{name: joined(name) for name in names})


def covered_texels(mesh: Mesh, resolution: tuple[int, int], backend: RenderBackend) -> Tensor:
    """[height, width] bool: texels whose centre lies in a face."""
    fragments = rasterize_texels(mesh, resolution, backend, mesh.uv[mesh.faces.long()])
    covered = torch.zeros(resolution, dtype=torch.bool)
    covered.view(-1)[fragments.pixel] = True
    return covered


def texels_per_unit(mesh: Mesh, covered: Tensor) -> float:
    """Texels along a unit of the surface on average, from the areas of both.

    Args:
        mesh: the surface.
        covered: [h, w] bool, texels that a face covers.
    """
    area = float(mesh.face_vectors.norm(dim=1).sum()) / 2
    return math.sqrt(max(1, int(covered.sum())) / max(area, 1e-9))


def transfer_maps(
    maps: Tensor,
    corner_uv: Tensor,
    mesh: Mesh,
    resolution: tuple[int, int],
    backend: RenderBackend,
) -> Tensor:
    """Moves a material from other texture coordinates of the same faces to the mesh's own.

    Args:
        maps: [h, w, 8] in the other coordinates.
        corner_uv: [f, 3, 2], the other coordinates.
        mesh: whose `uv` the result is for.
        resolution: of the result.
        backend: any.

    Returns:
        [*resolution, 8]; texels that no face covers repeat the mean of those that one does.
    """
    fragments = rasterize_texels(mesh, resolution, backend, corner_uv)
    derivatives = fragments.uv_derivatives
    values = backend.sample_texture(maps, fragments.attributes[:, :2], derivatives)
    values[:, NORMAL] = _turn_normals(values[:, NORMAL], derivatives)
    result = values.mean(0).expand(resolution[0] * resolution[1], -1).clone()
    result[fragments.pixel] = values
    return result.view(*resolution, -1)


def _turn_normals(normal: Tensor, derivatives: Tensor) -> Tensor:
    """Carries encoded tangent-space normals from one unwrapping's tangent frame to another's.

    Args:
        normal: [n, 3] in the frame of the coordinates (u, v).
        derivatives: [n, 4] ∂u/∂X, ∂u/∂Y, ∂v/∂X, ∂v/∂Y along the new frame's own (X, Y). Exact where
            both unwrappings keep angles.
    """
    x, y, z = (2 * normal - 1).unbind(-1)
    # Columns of the inverse Jacobian: where u and v increase, seen in the new frame.
    u_x, u_y, v_x, v_y = derivatives.unbind(-1)
    orientation = (u_x * v_y - u_y * v_x).sign()[:, None]
    along_u = F.normalize(torch.stack((v_y, -v_x), -1) * orientation, dim=-1)
    along_v = F.normalize(torch.stack((-u_y, u_x), -1) * orientation, dim=-1)
    turned = x[:, None] * along_u + y[:, None] * along_v
    return encode_normals(torch.cat((turned, z[:, None]), -1))


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


def band_limit(maps: Tensor, mesh: Mesh, pixels_per_unit: float, *, whole: bool = False) -> Tensor:
    """Blends the texels that one pixel of a picture covered: it told them nothing apart.

    The gradient of such texels comes from a coarser mip level, in blocks. They take what a look-up
    of that level shows at their place.

    Args:
        maps: [h, w, c] on the CPU, sides powers of two.
        mesh: whose texture it is.
        pixels_per_unit: of the pictures, looking straight at the surface.
        whole: take the finer of the two levels between which the pictures' own lies, which keeps
            the texture as sharp as it was made.

    Returns:
        A new [h, w, c]; texels that a pixel or more show stay as they are.
    """
    cpu = CpuBackend()
    size = (maps.shape[0], maps.shape[1])
    texels = rasterize_texels(mesh, size, cpu, mesh.uv[mesh.faces.long()])
    pitch = (uv_per_unit(mesh) / pixels_per_unit)[texels.face]  # of a pixel, in texture coordinates
    side = float(max(size))
    if whole:
        pitch = torch.exp2((pitch * side).clamp_min(1).log2().floor()) / side
    zero = torch.zeros_like(pitch)
    derivatives = torch.stack((pitch, zero, zero, pitch), 1).float()
    result = maps.clone()
    flat = result.view(-1, maps.shape[2])
    flat[texels.pixel] = cpu.sample_texture(maps, texels.attributes.contiguous(), derivatives)
    return result


def uv_per_unit(mesh: Mesh) -> Tensor:
    """[f] float64, how far a unit along the surface runs in the texture, by each face's areas."""
    uv = mesh.uv[mesh.faces.long()].double()
    (ax, ay), (bx, by) = (uv[:, 1] - uv[:, 0]).unbind(1), (uv[:, 2] - uv[:, 0]).unbind(1)
    return ((ax * by - ay * bx).abs() / mesh.face_vectors.norm(dim=1).clamp_min(1e-12)).sqrt()


# How far a normal may lean, as CasTex bounds it: |x|, |y| ≤ 1/2 and z ≥ 1/2.
LOWER_BOUND = (0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.25, 0.75)
UPPER_BOUND = (1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.75, 1.0)


@cache
def material_bounds(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The least and the largest value of each channel, [8]; copied to a device only once."""
    lower, upper = (torch.tensor(bound, dtype=dtype) for bound in (LOWER_BOUND, UPPER_BOUND))
    return lower.to(device), upper.to(device)


@torch.no_grad()
def project_material_(maps: Tensor) -> None:
    """Moves every texel to the nearest valid one, in place: normals to unit length, then bounds.

    Args:
        maps: [..., 8].

    Source: CasTex's projection after each step (arXiv 2504.06856), in encoded values.
    """
    if maps.device.type == "cpu" and maps.dtype == torch.float32 and maps.is_contiguous():
        _project_on_cpu(maps.view(-1, CHANNELS))
        return
    maps[..., NORMAL] = encode_normals(2 * maps[..., NORMAL] - 1)
    maps.clamp_(*material_bounds(maps.device, maps.dtype))


@njit(nogil=True, cache=True)
def _project(texels, lower, upper, first, last):
    for n in range(first, last):
        x, y, z = 2 * texels[n, 5] - 1, 2 * texels[n, 6] - 1, 2 * texels[n, 7] - 1
        scale = np.float32(0.5) / max(math.sqrt(x * x + y * y + z * z), np.float32(1e-12))
        texels[n, 5] = x * scale + np.float32(0.5)
        texels[n, 6] = y * scale + np.float32(0.5)
        texels[n, 7] = z * scale + np.float32(0.5)
        for c in range(8):
            texels[n, c] = min(max(texels[n, c], lower[c]), upper[c])


def _project_on_cpu(texels: Tensor) -> None:
    """Projects [n, 8] contiguous float32 texels in place, in one pass instead of ten."""
    lower, upper = (np.array(bound, dtype=np.float32) for bound in (LOWER_BOUND, UPPER_BOUND))
    parts = split(len(texels), worker_count())
    run_all(_project, [(texels.numpy(), lower, upper, part.start, part.stop) for part in parts])
