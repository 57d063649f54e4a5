"""Triton's visibility against the CPU's: the same ids, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import trimesh
from torch import Tensor

from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES, subdivide
from sdslab.rendering.cameras import Cameras, CameraSampler
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.render_backend import face_bits
from tests.interpreted import INTERPRETED, assert_it_passes, interpreted_process

FILES = Path(__file__).parents[3] / "shared" / "data" / "meshes"


@pytest.mark.skipif(INTERPRETED, reason="the kernels are interpreted in this process")
def test_interpreted_bodies():
    """The tests of this folder that a process for itself interprets."""
    with interpreted_process(Path(__file__).parent) as process:
        assert_it_passes(process)


def clip_of(positions: Tensor, cameras: Cameras) -> Tensor:
    return F.pad(positions, (0, 1), value=1.0) @ cameras.world_to_clip.mT


def assert_equal_ids(
    clip: Tensor, faces: Tensor, resolution: tuple[int, int], device: torch.device
) -> Tensor:
    from sdslab.rendering.triton_visibility import visible_faces_triton

    expected = CpuBackend().visibility(clip, faces, resolution)
    actual = visible_faces_triton(clip.to(device), faces.to(device), resolution)
    assert actual.dtype == torch.int32
    assert actual.cpu().equal(expected)
    return expected


@pytest.mark.usefixtures("wide_programs")
@pytest.mark.parametrize("name", PROCEDURAL_MESHES)
def test_ids_of_built_in_meshes(name: str, triton_device: torch.device):
    mesh = PROCEDURAL_MESHES[name]()
    clip = clip_of(mesh.render_positions, CameraSampler().sample(0, 0, 3))
    ids = assert_equal_ids(clip, mesh.faces, (72, 56), triton_device)
    assert (ids > 0).float().mean() > 0.02


@pytest.mark.usefixtures("wide_programs")
@pytest.mark.parametrize("name", ["spot", "stanford-bunny", "teapot"])
def test_ids_of_meshes_from_files(name: str, triton_device: torch.device):
    if not FILES.is_dir():
        pytest.skip("needs ../shared/data/meshes")
    mesh: Any = trimesh.load_mesh(FILES / f"{name}.obj", process=False)
    positions = torch.from_numpy(mesh.vertices).float()
    low, high = positions.amin(0), positions.amax(0)
    positions = (2 * positions - low - high) / (high - low).max()
    faces = torch.from_numpy(mesh.faces).int()
    clip = clip_of(positions, CameraSampler().sample(1, 0, 2))
    ids = assert_equal_ids(clip, faces, (80, 96), triton_device)
    assert (ids > 0).float().mean() > 0.02


@pytest.mark.usefixtures("wide_programs")
def test_ids_of_98304_faces(triton_device: torch.device):
    mesh = subdivide(subdivide(PROCEDURAL_MESHES["torus"]()))
    assert len(mesh.faces) == 98_304
    clip = clip_of(mesh.render_positions, CameraSampler().sample(2, 0, 1))
    assert_equal_ids(clip, mesh.faces, (128, 128), triton_device)


@pytest.mark.usefixtures("wide_programs")
def test_a_camera_inside_the_mesh(triton_device: torch.device):
    mesh = PROCEDURAL_MESHES["sphere"]()
    eye = torch.tensor([[0.1, 0.0, 0.2], [0.0, 0.0, 0.0]])
    cameras = Cameras.look_at(eye, torch.tensor([[1.0, 0.3, 0.0]] * 2), torch.tensor([60.0, 150]))
    ids = assert_equal_ids(
        clip_of(mesh.render_positions, cameras), mesh.faces, (48, 48), triton_device
    )
    assert (ids > 0).all()


@pytest.mark.parametrize("size", [0.3, 1.0])
def test_random_faces_through_the_near_plane(size: float, triton_device: torch.device):
    """As launched; of many faces some corners lie behind the eye."""
    generator = torch.Generator().manual_seed(3)
    centre, offset = (torch.randn(n, 4, generator=generator) for n in (100, 300))
    clip = (centre.repeat_interleave(3, 0) + size * offset)[None]
    clip[..., 3] += 0.5
    faces = torch.arange(300, dtype=torch.int32).view(100, 3)
    behind = (clip[0, :, 3] <= 0).view(100, 3).sum(1)
    assert ((behind > 0) & (behind < 3)).sum() > 10
    assert assert_equal_ids(clip, faces, (26, 34), triton_device).unique().numel() > 10


@pytest.mark.parametrize("w", [1.0, 0.37, 3.3])
def test_ties_on_shared_edges_and_of_faces_in_one_place(w: float, triton_device: torch.device):
    """Edges and diagonals run through pixel centres, and each face is there twice."""
    n = 4
    centres = (2 * torch.arange(n + 1).float() * 4 + 1) / 32 - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    clip = torch.stack((x, y, torch.zeros_like(x), torch.ones_like(x)), -1).reshape(1, -1, 4) * w
    a = (torch.arange(n)[:, None] * (n + 1) + torch.arange(n)).flatten()
    quads = torch.stack((a, a + 1, a + n + 2, a, a + n + 2, a + n + 1), -1)
    faces = quads.reshape(-1, 3).int()
    for order in (faces, faces.flip(0), torch.cat((faces, faces.roll(1, 1)))):
        ids = assert_equal_ids(clip, order, (32, 32), triton_device)
        assert 0 < ids.max() <= len(faces)


def test_walls_at_the_near_and_far_planes(triton_device: torch.device):
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    for depth in (-1.001, -1.0, -0.999, 0.999, 1.0, 1.001):
        clip = F.pad(F.pad(square, (0, 1), value=depth), (0, 1), value=1.0)[None] * 3
        ids = assert_equal_ids(clip, faces, (20, 20), triton_device)
        assert (ids > 0).all() == (abs(depth) <= 1)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of ∞ − ∞
def test_degenerate_and_non_finite_faces_cover_nothing(triton_device: torch.device):
    corners = torch.tensor(
        [
            [0.0, 0, 0, 1], [0.5, 0.5, 0, 1], [1, 1, 0, 1], [torch.nan, 0, 0, 1],
            [torch.inf, 0, 0, 1], [1, 0, torch.nan, 1], [0, 1, 0, -torch.inf],
        ]
    )  # fmt: skip
    faces = torch.tensor(
        [[0, 1, 2], [0, 0, 0], [0, 1, 3], [0, 4, 2], [0, 2, 5], [0, 2, 6]], dtype=torch.int32
    )
    assert not assert_equal_ids(corners[None], faces, (16, 16), triton_device).any()


@pytest.mark.parametrize("resolution", [(1, 1), (1, 37), (70, 3)], ids=str)
def test_odd_pictures_and_no_faces(resolution: tuple[int, int], triton_device: torch.device):
    clip = torch.tensor([[[-1.0, -1, 0, 1], [3, -1, 0.5, 1], [-1, 3, -0.5, 1]]]).expand(3, 3, 4)
    faces = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    assert (assert_equal_ids(clip, faces, resolution, triton_device) == 1).all()
    assert_equal_ids(clip, faces[:0], resolution, triton_device)


@pytest.mark.parametrize("faces", [0, 1, 2**17 - 1, 2**17, 2**31 - 1])
def test_a_packed_number_is_positive_and_holds_its_face(faces: int):
    bits = face_bits(faces)
    assert faces < 2**bits
    farthest = (int(2 * 2.0 ** (61 - bits)) << bits) | faces
    no_face = (2**63 - 1) ^ ((1 << bits) - 1)
    assert farthest < no_face < 2**63
