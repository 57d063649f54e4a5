"""Barycentrics, attributes and their derivatives, against closed forms and finite differences."""

import pytest
import torch
from torch import Tensor

from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.rendering.backends import make_backend
from sdslab.rendering.cameras import CameraSampler
from sdslab.rendering.render_backend import Fragments, RenderBackend, resolve

RESOLUTION = 64


def scene() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clip coordinates, faces, ids and attributes (uv, position) of a torus in 3 views."""
    mesh = PROCEDURAL_MESHES["torus"]()
    positions = mesh.render_positions
    cameras = CameraSampler(fov_deg=(70, 70), radius=(3, 3)).sample(1, 0, 3)
    clip = torch.nn.functional.pad(positions, (0, 1), value=1.0) @ cameras.world_to_clip.mT
    from sdslab.rendering.cpu_backend import CpuBackend

    ids = CpuBackend().visibility(clip, mesh.faces, (RESOLUTION, RESOLUTION))
    return clip, mesh.faces, ids, torch.cat((mesh.uv, positions), 1)


def test_interpolated_positions_project_to_their_pixels():
    clip, faces, ids, attributes = scene()
    cameras = CameraSampler(fov_deg=(70, 70), radius=(3, 3)).sample(1, 0, 3)
    fragments = resolve(clip.double(), faces, ids, attributes.double())
    position = torch.nn.functional.pad(fragments.attributes[:, 2:], (0, 1), value=1.0)
    back = (cameras.world_to_clip.double()[fragments.sample] @ position[..., None])[..., 0]
    row = fragments.pixel % RESOLUTION**2 // RESOLUTION
    column = fragments.pixel % RESOLUTION
    ndc = back[:, :3] / back[:, 3:]
    budget = 1e-5  # clip coordinates are float32
    assert ((2 * column + 1) / RESOLUTION - 1 - ndc[:, 0]).abs().max() < budget
    assert (1 - (2 * row + 1) / RESOLUTION - ndc[:, 1]).abs().max() < budget
    assert (fragments.depth - ndc[:, 2]).abs().max() < budget
    assert (fragments.barycentrics.sum(1) - 1).abs().max() < 1e-12
    assert fragments.barycentrics.min() > -1e-9


def test_uv_derivatives_equal_finite_differences():
    """The face of each fragment evaluated a little to the right and a little below, in float64."""
    clip, faces, ids, attributes = scene()
    clip, attributes = clip.double(), attributes.double()
    here = resolve(clip, faces, ids, attributes)
    step = 1e-5  # pixels
    for axis, column in ((0, 0), (1, 1)):
        shifted = []
        for sign in (1, -1):
            moved = clip.clone()  # moving the picture by −δ is looking δ further
            direction = -1 if axis == 0 else 1
            moved[..., axis] += direction * sign * step * 2 / RESOLUTION * clip[..., 3]
            shifted.append(resolve(moved, faces, ids, attributes).attributes[:, :2])
        difference = (shifted[0] - shifted[1]) / (2 * step)
        derivative = here.uv_derivatives[:, column::2]
        scale = derivative.abs().max()
        assert (difference - derivative).abs().max() < 1e-6 * scale


def test_front_faces_wind_counter_clockwise():
    clip = torch.tensor([[[-1.0, -1, 0, 1], [1, -1, 0, 1], [0, 1, 0, 1]]])
    uv = torch.zeros(3, 2)
    for order, front in (((0, 1, 2), True), ((0, 2, 1), False)):
        faces = torch.tensor([order], dtype=torch.int32)
        fragments = resolve(clip, faces, torch.ones(1, 4, 4, dtype=torch.int32), uv)
        assert fragments.front_facing.tolist() == [front] * 16


def test_a_backend_equals_the_reference(backend: RenderBackend, device: torch.device):
    """With the same ids fed to both."""
    clip, faces, ids, attributes = scene()
    expected = resolve(clip.double(), faces, ids, attributes.double())
    actual = backend.resolve(*(tensor.to(device) for tensor in (clip, faces, ids, attributes)))
    assert actual.shape == expected.shape
    assert actual.pixel.cpu().equal(expected.pixel)
    assert actual.face.cpu().equal(expected.face)
    assert actual.front_facing.cpu().equal(expected.front_facing)
    for name in ("barycentrics", "depth", "attributes", "uv_derivatives"):
        difference = getattr(actual, name).cpu() - getattr(expected, name)
        assert difference.abs().max() < 1e-4, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_ids_on_a_gpu_equal_the_cpus():
    clip, faces, ids, _ = scene()
    backend = make_backend("auto", torch.device("cuda"))
    actual = backend.visibility(clip.cuda(), faces.cuda(), (RESOLUTION, RESOLUTION)).cpu()
    assert actual.equal(ids)


def test_an_empty_picture_has_no_fragments(backend: RenderBackend, device: torch.device):
    clip, faces, ids, attributes = scene()
    fragments: Fragments = backend.resolve(
        clip.to(device), faces.to(device), (ids * 0).to(device), attributes.to(device)
    )
    assert len(fragments.pixel) == len(fragments.attributes) == 0
    assert fragments.attributes.shape[1] == attributes.shape[1]
