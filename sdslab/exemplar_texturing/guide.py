"""The gradient of a step: noise fixed to the surface, steep views weighed down, SR-SDS last."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.denoisers.denoiser import Condition
from sdslab.denoisers.exemplar import ExemplarDenoiser, timestep
from sdslab.denoisers.noise_schedule import WEIGHTINGS
from sdslab.denoisers.patch_bank import low_pass
from sdslab.denoisers.wrappers import ClassifierFreeGuidance
from sdslab.distillation.sds import sds_gradient
from sdslab.distillation.sr_sds import sr_sds_gradient
from sdslab.exemplar_texturing.surface_points import VOXEL_HASH
from sdslab.kernels import NoiseKey, SDSResult, philox_normal, philox_uniform
from sdslab.kernels.philox import ANCHORED_NOISE_STREAM, NOISE_LEVEL_STREAM
from sdslab.meshes.material import NORMAL, dilate_seams
from sdslab.meshes.mesh import Mesh
from sdslab.meshes.surface_frame import weld
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.render_backend import RenderBackend
from sdslab.rendering.renderer import Renderer, Surface
from sdslab.rendering.scene import Scene
from sdslab.rendering.texels import rasterize_texels

FIELD_SIZE = 256  # height and width of the map that pixels look the field up in
SOLVES = 12  # steps of inverse iteration
SHIFT = 1e-4  # keeps the connection Laplacian invertible where a field without bends exists
Y = (0.0, 1.0, 0.0)


@dataclass(frozen=True, eq=False)
class TangentField:
    """A direction along the surface, everywhere.

    Attributes:
        vertices: [v, 3] unit tangent vectors at the mesh's vertices.
        picture: [h, w, 3], the same as a map.
        backend: that looks it up.
    """

    vertices: Tensor
    picture: Tensor
    backend: RenderBackend

    @classmethod
    def of(
        cls, mesh: Mesh, orient: Literal["up", "flow"], backend: RenderBackend
    ) -> "TangentField":
        """The object's own up along the surface, or the field that bends least ("flow")."""
        normals = F.normalize(mesh.render_normals.double(), dim=1)
        vertices = (_up(normals) if orient == "up" else _smoothest(mesh, normals)).float()
        corners = vertices[mesh.faces.long()]
        size = (FIELD_SIZE, FIELD_SIZE)
        attributes = torch.cat((mesh.uv[mesh.faces.long()], corners), -1)
        cpu = CpuBackend()
        texels = rasterize_texels(mesh, size, cpu, attributes)
        picture = torch.zeros(FIELD_SIZE**2, 3)
        picture[texels.pixel] = texels.attributes[:, 2:]
        covered = torch.zeros(FIELD_SIZE**2, dtype=torch.bool)
        covered[texels.pixel] = True
        return cls(vertices, dilate_seams(picture.view(*size, 3), covered.view(size)), backend)

    def at(self, surface: Surface) -> Tensor:
        """Unit tangent vectors [n, 3] at the pixels of a surface; 0 where the field has none."""
        picture = self.picture.to(surface.uv)
        field = self.backend.sample_texture(picture, surface.uv, surface.uv_derivatives)
        along = field - (field * surface.normal).sum(1, keepdim=True) * surface.normal
        return F.normalize(along, dim=1)


def on_screen(vectors: Tensor, surface: Surface, world_to_camera: Tensor) -> Tensor:
    """World vectors [n, 3] at a surface's pixels as unit vectors (right, up), [n, 2]."""
    axes = world_to_camera.to(vectors)[surface.view, :2, :3]
    return F.normalize((axes @ vectors[..., None])[..., 0], dim=1)


def _up(normals: Tensor) -> Tensor:
    """+Y along the surface; where that has no direction, −Z, as `Cameras.look_at` has it."""
    up = normals.new_tensor(Y).expand_as(normals)
    along = up - (up * normals).sum(1, keepdim=True) * normals
    vertical = along.norm(dim=1, keepdim=True) < 1e-3
    return F.normalize(torch.where(vertical, normals.new_tensor([0.0, 0.0, -1.0]), along), dim=1)


def _smoothest(mesh: Mesh, normals: Tensor) -> Tensor:
    """The field that bends least over the whole surface, turned so that it mostly points up.

    The least eigenvector of the connection Laplacian: each vertex has a complex number in a frame
    of its own, and neighbours are compared after one frame is carried to the other.

    Source: Knöppel et al. 2013, "Globally optimal direction fields", with unit edge weights.
    """
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components
    from scipy.sparse.linalg import splu

    place = weld(mesh.positions)
    count = int(place.max()) + 1
    # A welded vertex has the mean normal of those that lie there.
    normal = torch.zeros(count, 3, dtype=torch.double).index_add(0, place, normals)
    normal = F.normalize(normal, dim=1)
    up = _up(normal)
    right = torch.linalg.cross(up, normal)
    faces = place[mesh.faces.long()]
    edges = torch.cat((faces[:, :2], faces[:, 1:], faces[:, [2, 0]]))
    i, j = torch.cat((edges, edges.flip(1))).unique(dim=0).T
    kept = i != j
    i, j = i[kept], j[kept]
    # The frame of j is turned into the plane of i about the line where both planes meet.
    carried = _turned(right[j], normal[j], normal[i])
    angle = torch.atan2((carried * up[i]).sum(1), (carried * right[i]).sum(1)).numpy()
    rows, columns = i.numpy(), j.numpy()
    degree = np.bincount(rows, minlength=count)
    values = np.concatenate((-np.exp(1j * angle), degree + SHIFT))
    diagonal = np.arange(count)
    laplacian = sparse.csc_matrix(
        (values, (np.concatenate((rows, diagonal)), np.concatenate((columns, diagonal)))),
        shape=(count, count),
    )
    solver = splu(laplacian)
    piece = connected_components(abs(laplacian), directed=False)[1]  # each has a field of its own
    field = np.full(count, 1j)  # up
    for _ in range(SOLVES):
        field = solver.solve(field)
        field /= np.sqrt(np.bincount(piece, np.abs(field) ** 2))[piece]
    unit = field / np.maximum(np.abs(field), 1e-12)
    mean = np.bincount(piece, unit.real) + 1j * np.bincount(piece, unit.imag)
    mean = np.where(np.abs(mean) > 1e-9, mean, 1j)
    direction = torch.from_numpy(unit * (1j * np.abs(mean) / mean)[piece])
    vectors = direction.real[:, None] * right + direction.imag[:, None] * up
    return vectors[place]


def _turned(vectors: Tensor, from_normal: Tensor, to_normal: Tensor) -> Tensor:
    """Vectors [n, 3] under the least rotation that brings one unit normal to the other."""
    axis = torch.linalg.cross(from_normal, to_normal)
    cosine = (from_normal * to_normal).sum(1, keepdim=True)
    along = (axis * vectors).sum(1, keepdim=True) * axis / (1 + cosine).clamp_min(1e-6)
    return cosine * vectors + torch.linalg.cross(axis, vectors) + along


@dataclass(frozen=True, eq=False)
class GuidedPicture:
    """Pictures of some channels of a material, without light: colours do not hang on it.

    Attributes:
        renderer: of the mesh.
        guided: indices of the material's channels, in order.
    """

    renderer: Renderer
    guided: tuple[int, ...]

    def __call__(self, surface: Surface, maps: Tensor, scene: Scene) -> Tensor:
        """[b, c, h, w] in [0, 1], differentiable in the maps; normals are turned to the screen."""
        texels = self.renderer.look_up(surface, maps)
        if NORMAL.start in self.guided:
            x, y, z = (2 * texels[:, NORMAL] - 1).unbind(1)
            across, up = on_screen(
                surface.tangent[:, :3], surface, scene.cameras.world_to_camera
            ).unbind(1)
            side = surface.tangent[:, 3]  # the bitangent lies a quarter turn on, or back
            turned = torch.stack((x * across - y * side * up, x * up + y * side * across, z), 1)
            texels = torch.cat((texels[:, : NORMAL.start], (turned + 1) / 2), 1)
        values = texels[:, : len(self.guided)]
        if self.guided != tuple(range(len(self.guided))):
            values = texels[:, list(self.guided)]
        return surface.fill(values, scene.background.to(values))


TABLE_SIZE = 2**16
WEIGHTING = WEIGHTINGS["x0_unit"]


@dataclass(frozen=True, eq=False)
class ExemplarGuide:
    """A `Guide` for `optimize_material`: Eq. 1 with an exemplar's exact denoiser.

    Attributes:
        denoiser: of one level of resolution.
        picture: what it is shown.
        u: (first, last) noise level of the stage; √ᾱ = cos(πu/2).
        steps: of the stage.
        seed: of the noise.
        pixels_per_unit: of the pictures; a voxel of the anchored noise is a pixel wide.
        power: of (n·v), the weight of a pixel.
        anchored: whether the noise belongs to places on the surface, or is drawn anew each step.
        annealed: whether u falls from first to last, or is drawn between them each step.
        stage_one: [h, w, 8], the material that super-resolution starts from; None is stage I.
        field: which way the photograph's up points, for a bank of several poses.
        tag: the exemplar that leads, and how strongly (`ClassifierFreeGuidance`'s scale).
    """

    denoiser: ExemplarDenoiser
    picture: GuidedPicture
    u: tuple[float, float]
    steps: int
    seed: int
    pixels_per_unit: float
    power: float = 2.0
    anchored: bool = True
    annealed: bool = True
    stage_one: Tensor | None = None
    field: TangentField | None = None
    tag: tuple[int, float] | None = None

    @torch.no_grad()
    def __call__(self, z: Tensor, index: int, scene: Scene, surface: Surface) -> SDSResult:
        key = NoiseKey(self.seed, index, torch.arange(len(z), device=z.device))
        weight = self._weight(surface)
        # Steep places, where views disagree and x̂_0 blurs, must not decide its contrast.
        condition = Condition(foreground=weight, up=self._up(scene, surface))
        model = self.denoiser
        if self.tag is not None:
            row, scale = self.tag
            prompt = torch.full((len(z),), row, device=z.device)
            condition = replace(condition, prompt=prompt)
            model = ClassifierFreeGuidance(model, model.unconditional, scale)
        t = self._timesteps(z, index)
        noise = self._anchored_noise(z, key, surface) if self.anchored else key
        if self.stage_one is None:
            result = sds_gradient(z, model, t, noise, weighting=WEIGHTING, condition=condition)
        else:
            render = low_pass(
                self.picture(surface, self.stage_one, scene), self.denoiser.bank.factor
            )
            result = sr_sds_gradient(
                z, render, model, t, noise, None, weighting=WEIGHTING, condition=condition,
                low_size=z.shape[-1],  # it shows no more than the low resolution does already
            )  # fmt: skip
        gradient = result.gradient * weight
        loss = 0.5 * (result.gradient.square() * weight).flatten(1).sum(1)
        return SDSResult(gradient, loss, result.nonfinite)

    def _timesteps(self, z: Tensor, index: int) -> Tensor:
        """One noise level a step, [b]."""
        first, last = self.u
        share = index / max(1, self.steps - 1)
        if not self.annealed:
            key = NoiseKey(self.seed, index, torch.arange(1), NOISE_LEVEL_STREAM)
            share = float(philox_uniform(key, 1))
        return torch.full((len(z),), timestep(first + (last - first) * share), device=z.device)

    def _up(self, scene: Scene, surface: Surface) -> Tensor | None:
        """Where the photograph's up points on the screen, [b, 2, h, w]; 0 behind the object."""
        if self.field is None or self.denoiser.bank.pose_count == 1:
            return None
        vectors = self.field.at(surface)
        up = on_screen(vectors, surface, scene.cameras.world_to_camera)
        b, height, width = surface.shape
        return surface.fill(up, up.new_zeros(b, 2, height, width))

    def _weight(self, surface: Surface) -> Tensor:
        """(n·v)^power of each pixel, [b, 1, h, w]; 0 where there is no surface."""
        towards = F.normalize(surface.eye[surface.view] - surface.position, dim=1)
        cosine = (towards * surface.normal).sum(1, keepdim=True).clamp(0, 1)
        b, height, width = surface.shape
        return surface.fill(cosine**self.power, cosine.new_zeros(b, 1, height, width))

    @cached_property
    def _noise_table(self) -> Tensor:
        """What the voxels look their noise up in, [``TABLE_SIZE``, c]."""
        sample = torch.arange(1, device=self.picture.renderer.device)
        key = NoiseKey(self.seed, 0, sample, ANCHORED_NOISE_STREAM)
        return philox_normal(key, (TABLE_SIZE, len(self.picture.guided)))[0]

    def _anchored_noise(self, z: Tensor, key: NoiseKey, surface: Surface) -> Tensor:
        """Noise that belongs to the place on the surface, whatever view looks at it.

        The voxels are cubes as wide as a pixel; behind the object the noise is fresh.
        """
        voxel = (surface.position * self.pixels_per_unit).floor().long()
        place = voxel[:, 0] * VOXEL_HASH[0]
        place = place ^ (voxel[:, 1] * VOXEL_HASH[1]) ^ (voxel[:, 2] * VOXEL_HASH[2])
        behind = philox_normal(key, z.shape[1:])
        return surface.fill(
            self._noise_table[place % TABLE_SIZE].to(z.dtype), behind.to(z.dtype)
        ).contiguous()
