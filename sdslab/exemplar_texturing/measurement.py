"""How like a photograph a textured mesh is, seen from near by, and whether its seams show."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.exemplar_texturing.exemplars import ExemplarSet
from sdslab.meshes.material import ALBEDO
from sdslab.meshes.mesh import Mesh
from sdslab.meshes.surface_frame import weld
from sdslab.pictures.metrics import (
    PATCH,
    contrast,
    gabor_distance,
    gradient_energy,
    sliced_wasserstein,
)
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.scene import SurfaceViews

VIEWS = 24
RESOLUTION = 96
Distance = Callable[..., float]
DISTANCES: tuple[Distance, ...] = (sliced_wasserstein, gabor_distance)
SCALES = (1, 2, 4)  # how many times coarser than the finest pictures
STEEPEST = 0.85  # n·v of pixels that count
HELD_OUT_SEED = 2**50  # of views that no level has drawn
SAME_UV = 1e-5
FROM_EDGE = 2.0  # texels: farther than a look-up blends, so that the texels' grid does not show
DEEPEST = 0.6  # how far into a face is looked at most, as a share of its height
FLAT = 1e-4  # contrast of a photograph of one colour, at most
ALONG_EDGE = (0.25, 0.5, 0.75)  # where edges are looked at


@dataclass(frozen=True)
class TextureMeasurement:
    """A textured mesh beside its photograph.

    Attributes:
        sliced_wasserstein: mean over ``SCALES`` of the distance between patches of straight views
            and of the photograph, in pixel values of [0, 1].
        crop: the same between the photograph's middle and the whole: what can be had at best.
        gabor: mean over ``SCALES`` of `gabor_distance`; NaN where no straight place is as large as
            a filter.
        gabor_crop: the same between the photograph's middle and the whole.
        contrast: standard deviation over the photograph's, at the finest scale; NaN where that has
            none.
        gradient_energy: over the photograph's, at the finest scale; NaN where that has none.
        seam_jump: difference of colours across seams of the atlas over that across other edges of
            the same faces; NaN where there is no seam.
    """

    sliced_wasserstein: float
    crop: float
    gabor: float
    gabor_crop: float
    contrast: float
    gradient_energy: float
    seam_jump: float


def measure_texture(
    renderer: Renderer,
    maps: Tensor,
    exemplars: ExemplarSet,
    scale: float,
    pixels_per_unit: float,
    texels_per_unit: float,
    exemplar: int = 0,
) -> TextureMeasurement:
    """Measures the albedo of a material.

    Args:
        renderer: of the mesh.
        maps: [h, w, 8], dilated across seams.
        exemplars: one of them is what it should look like, where its mask is bright.
        scale: world size of its height.
        pixels_per_unit: of the finest pictures.
        texels_per_unit: of the atlas.
        exemplar: which one.
    """
    # By distance, (ours, a crop's) at each scale.
    distances: dict[Distance, list[tuple[float, float]]] = {d: [] for d in DISTANCES}
    sharpness = (math.nan, math.nan)
    for coarseness in SCALES:
        density = pixels_per_unit / coarseness
        height = max(16, round(scale * density))
        channels, copied = exemplars.exemplars[exemplar].at_height(height, 1)
        photo, copied = (channels[None, ALBEDO] + 1) / 2, None if copied is None else copied[None]
        pictures, mask = straight_views(renderer, maps, density, RESOLUTION)
        middle, copied_middle = _middle(photo), None if copied is None else _middle(copied)
        for distance, pairs in distances.items():
            ours = distance(pictures, photo, mask_a=mask, mask_b=copied)
            if not math.isnan(ours):  # else no straight place is as large as it needs
                crop = distance(middle, photo, mask_a=copied_middle, mask_b=copied)
                pairs.append((ours, crop))
        if coarseness == 1:
            sharpness = (
                _ratio(contrast(pictures, mask=mask), contrast(photo, mask=copied), FLAT),
                _ratio(
                    gradient_energy(pictures, mask=mask),
                    gradient_energy(photo, mask=copied),
                    FLAT**2,
                ),
            )
    patches, gabor = (
        [_mean([pair[k] for pair in pairs]) for k in (0, 1)] for pairs in distances.values()
    )
    jump = seam_jump(renderer.mesh, maps, texels_per_unit)
    return TextureMeasurement(patches[0], patches[1], gabor[0], gabor[1], *sharpness, jump)


def _middle(picture: Tensor) -> Tensor:
    """A picture's middle, two thirds of each side."""
    top, left = (min(side // 6, (side - PATCH) // 2) for side in picture.shape[-2:])
    return picture[..., top : picture.shape[-2] - top, left : picture.shape[-1] - left]


def _mean(values: list[float]) -> float:
    """Mean of those that are numbers; NaN where there are none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _ratio(value: float, reference: float, least: float) -> float:
    """NaN where the reference, of a uniform photograph, is nothing or a rounding error."""
    return value / reference if reference > least else math.nan


def straight_views(
    renderer: Renderer, maps: Tensor, pixels_per_unit: float, resolution: int
) -> tuple[Tensor, Tensor]:
    """Unlit pictures along the normals of random places, and where they see the surface straight.

    Returns:
        [n, 3, h, h] in [0, 1] and [n, 1, h, h] bool.
    """
    background = torch.full((3,), 0.5)
    views = SurfaceViews.of(renderer.mesh, pixels_per_unit, resolution, background, HELD_OUT_SEED)
    scene = views.sample(0, 2 * VIEWS, renderer.extreme_points)
    straight = slice(0, None, 2)  # the others look from around the object
    scene = replace(scene, cameras=scene.cameras[straight], background=scene.background[straight])
    surface = renderer.see(scene.cameras, resolution)
    towards = F.normalize(surface.eye[surface.view] - surface.position, dim=1)
    cosine = (towards * surface.normal).sum(1, keepdim=True)
    mask = surface.fill(cosine, cosine.new_zeros(VIEWS, 1, resolution, resolution)) > STEEPEST
    with torch.no_grad():
        albedo = renderer.look_up(surface, maps.to(renderer.device))[:, ALBEDO]
    pictures = surface.fill(albedo, scene.background.to(albedo)).clamp(0, 1)
    return pictures.cpu(), mask.cpu()


def seam_jump(mesh: Mesh, maps: Tensor, texels_per_unit: float) -> float:
    """How much more colours differ across the atlas's seams than across other edges beside them.

    On either side of each edge, ``FROM_EDGE`` texels away from it, the albedo is looked up at three
    places. Seams are compared with the other edges of the same faces: textures, and sizes of
    texels, are not the same everywhere. A projection from outside, which knows no seams, scores 1
    to 1.1.

    Args:
        mesh: whose texture it is.
        maps: [h, w, 8] on the CPU, dilated across seams.
        texels_per_unit: of the atlas, on average.
    """
    one, other = _edge_pairs(mesh)
    faces, uv = mesh.faces.long(), mesh.uv
    a_start, a_end = uv[faces[one // 3, one % 3]], uv[faces[one // 3, (one + 1) % 3]]
    b_end, b_start = uv[faces[other // 3, other % 3]], uv[faces[other // 3, (other + 1) % 3]]
    apart = torch.maximum(_uv_distance(a_start, b_start), _uv_distance(a_end, b_end))
    is_seam = apart > SAME_UV
    backend = CpuBackend()
    colours = []
    for edge in (one, other):
        # The second face's edge runs the other way: its places along the edge come in reverse.
        along = _beside_edges(mesh, edge, FROM_EDGE / texels_per_unit)
        along = along if edge is one else along.flip(1)
        flat = along.reshape(-1, 2).float().contiguous()
        texels = backend.sample_texture(maps.contiguous(), flat, torch.zeros(len(flat), 4))
        colours.append(texels[:, ALBEDO].view(len(along), len(ALONG_EDGE), 3))
    jump = (colours[0] - colours[1]).abs().mean((1, 2)).double()
    within, count = torch.zeros(2, len(faces), dtype=torch.float64)
    for edge in (one, other):
        within.index_add_(0, edge[~is_seam] // 3, jump[~is_seam])
        count.index_add_(0, edge[~is_seam] // 3, torch.ones_like(jump[~is_seam]))
    beside = torch.stack((one[is_seam] // 3, other[is_seam] // 3))
    total, number = within[beside].sum(0), count[beside].sum(0)
    known = number > 0
    if not known.any():
        return math.nan
    expected = (total[known] / number[known]).mean().clamp_min(1e-9)
    return float(jump[is_seam][known].mean() / expected)


def _edge_pairs(mesh: Mesh) -> tuple[Tensor, Tensor]:
    """The two faces' edges, [e] each, 3 · face + number, of every edge that two faces share.

    Edge k of a face runs from its corner k to the next one; reversed in the face beside it.
    """
    places = weld(mesh.positions)[mesh.faces.long()]  # [f, 3]
    start, end = places, places.roll(-1, 1)
    total = int(places.max()) + 1
    key = (torch.minimum(start, end) * total + torch.maximum(start, end)).flatten()
    order = key.argsort(stable=True)
    _, counts = key[order].unique_consecutive(return_counts=True)
    first = counts.cumsum(0) - counts
    pair = first[counts == 2]
    return order[pair], order[pair + 1]


def _beside_edges(mesh: Mesh, edge: Tensor, distance: float) -> Tensor:
    """Texture coordinates [e, 3, 2] inside the face of each edge, ``distance`` from the edge.

    Args:
        mesh: whose edges they are.
        edge: [e], 3 · face + number of the edge in it.
        distance: in the units of `Mesh.render_positions`; less in faces that are too narrow.
    """
    face, corner = edge // 3, edge % 3
    corners = [mesh.faces.long()[face, (corner + k) % 3] for k in range(3)]
    a, b, c = (mesh.render_positions[index].double() for index in corners)
    base = (b - a).norm(dim=1)
    height = torch.linalg.cross(b - a, c - a).norm(dim=1) / base.clamp_min(1e-12)
    share = (distance / height.clamp_min(1e-12)).clamp_max(DEEPEST)[:, None, None]
    along = torch.tensor(ALONG_EDGE, dtype=torch.float64).view(1, -1, 1)
    ua, ub, uc = (mesh.uv[index].double()[:, None] for index in corners)
    on_edge = (1 - along) * ua + along * ub
    return (1 - share) * on_edge + share * uc


def _uv_distance(a: Tensor, b: Tensor) -> Tensor:
    """[e], of texture coordinates that repeat."""
    difference = a - b
    return (difference - difference.round()).abs().amax(1)
