"""Visibility against embree, an independent ray tracer, and against closed forms."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.rendering.cameras import Cameras, CameraSampler
from sdslab.rendering.cpu_backend import ON_EDGE, CpuBackend

RESOLUTION = 128
# The share of ids that two exact methods may tell apart, because a pixel centre lies on an edge.
ON_EDGES = 2.2e-5 * 4


def embree_ids(cameras: Cameras, positions: Tensor, faces: Tensor, resolution: int) -> Tensor:
    """1 + the first face that a ray through each pixel centre meets, 0 for none."""
    from embreex import rtcore_scene
    from embreex.mesh_construction import TriangleMesh

    scene: Any = rtcore_scene.EmbreeScene()  # type: ignore[attr-defined]
    TriangleMesh(scene, positions[faces.long()].float().numpy())
    centres = (2 * torch.arange(resolution).double() + 1) / resolution - 1
    y, x = torch.meshgrid(-centres, centres, indexing="ij")
    ids = []
    for world_to_clip in cameras.world_to_clip.double():
        clip_to_world = torch.linalg.inv(world_to_clip)
        near, far = (
            torch.stack((x, y, torch.full_like(x, z), torch.ones_like(x)), -1) @ clip_to_world.T
            for z in (-1.0, 1.0)
        )
        origin, end = near[..., :3] / near[..., 3:], far[..., :3] / far[..., 3:]
        direction = torch.nn.functional.normalize(end - origin, dim=-1)
        hits = scene.run(
            origin.reshape(-1, 3).float().numpy(), direction.reshape(-1, 3).float().numpy()
        )
        ids.append(torch.from_numpy(np.asarray(hits).reshape(resolution, resolution) + 1))
    return torch.stack(ids)


def clip_of(cameras: Cameras, positions: Tensor) -> Tensor:
    return torch.nn.functional.pad(positions, (0, 1), value=1.0) @ cameras.world_to_clip.mT


@pytest.mark.parametrize("name", PROCEDURAL_MESHES)
def test_ids_equal_embrees(name: str):
    mesh = PROCEDURAL_MESHES[name]()
    cameras = CameraSampler().sample(0, 0, 6)
    positions = mesh.render_positions
    ours = CpuBackend().visibility(
        clip_of(cameras, positions), mesh.faces, (RESOLUTION, RESOLUTION)
    )
    theirs = embree_ids(cameras, positions, mesh.faces, RESOLUTION)
    assert (ours > 0).float().mean() > 0.02
    assert (ours != theirs).double().mean() <= ON_EDGES
    assert ((ours > 0) != (theirs > 0)).double().mean() <= ON_EDGES


def test_a_camera_inside_the_mesh_sees_its_walls():
    mesh = PROCEDURAL_MESHES["sphere"]()
    eye = torch.tensor([[0.1, 0.0, 0.2], [0.0, 0.0, 0.0]])
    cameras = Cameras.look_at(eye, torch.tensor([[1.0, 0.3, 0.0]] * 2), torch.tensor([60.0, 150]))
    positions = mesh.render_positions
    ours = CpuBackend().visibility(
        clip_of(cameras, positions), mesh.faces, (RESOLUTION, RESOLUTION)
    )
    assert (ours > 0).all()
    theirs = embree_ids(cameras, positions, mesh.faces, RESOLUTION)
    assert (ours != theirs).double().mean() <= ON_EDGES


def test_a_face_through_the_near_plane_is_cut_there():
    """A floor that runs from behind the camera to far ahead fills the picture's lower half."""
    floor = torch.tensor([[-50.0, -1, 50], [50, -1, 50], [0, -1, -5000]])
    cameras = Cameras.look_at(torch.zeros(1, 3), torch.tensor([[0.0, 0, -1]]), torch.tensor([90.0]))
    faces = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    ids = CpuBackend().visibility(clip_of(cameras, floor), faces, (64, 64))[0]
    assert (ids[:32] == 0).all()
    assert (ids[33:, 16:48] == 1).all()


def test_nothing_shows_before_the_near_plane_or_behind_the_far_one():
    """Four walls across the picture, at depths just outside and just inside [−1, 1]."""
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
    for depth, seen in ((-1.001, False), (-0.999, True), (0.999, True), (1.001, False)):
        for w in (1.0, 3.0):
            corners = torch.nn.functional.pad(square, (0, 1), value=depth)
            clip = torch.nn.functional.pad(corners, (0, 1), value=1.0) * w
            ids = CpuBackend().visibility(clip[None], faces, (4, 4))
            assert (ids > 0).all() == seen
            assert (ids > 0).any() == seen


def test_a_wall_through_the_near_plane_shows_only_its_far_half():
    """z/w falls from 0 at the left to −2 at the right: −1, the near plane, is in the middle."""
    clip = torch.tensor([[[-1.0, -1, 0, 1], [1, -1, -2, 1], [1, 1, -2, 1], [-1, 1, 0, 1]]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
    ids = CpuBackend().visibility(clip, faces, (8, 8))[0]
    assert (ids[:, :4] > 0).all()
    assert (ids[:, 4:] == 0).all()


@pytest.mark.parametrize(("gap", "holds"), [(0.1 * ON_EDGE, True), (100 * ON_EDGE, False)])
def test_a_pixel_centre_belongs_to_a_face_up_to_the_edges_tolerance(gap: float, holds: bool):
    """The pixel's centre is at the origin, outside the face's left edge by a share of the face."""
    offset = gap  # float32 holds it: it is far from the other coordinates' magnitude
    corners = torch.tensor([[offset, -1.0, 0, 1], [1, 0, 0, 1], [offset, 1, 0, 1]])
    ids = CpuBackend().visibility(
        corners[None], torch.tensor([[0, 1, 2]], dtype=torch.int32), (1, 1)
    )
    assert bool(ids) == holds


def test_the_first_row_is_the_top_and_the_first_column_the_left():
    corner = torch.tensor([[[-1.0, 1, 0, 1], [0, 1, 0, 1], [-1, 0, 0, 1]]])  # clip space
    ids = CpuBackend().visibility(corner, torch.tensor([[0, 1, 2]], dtype=torch.int32), (8, 8))[0]
    assert ids[0, 0] == 1
    assert ids[0, -1] == ids[-1, 0] == ids[-1, -1] == 0


def test_shared_edges_through_pixel_centres_leave_no_holes_and_the_lower_index_wins():
    """A grid of quads whose edges and diagonals all run through pixel centres."""
    n = 8
    centres = (2 * torch.arange(n + 1).float() * 4 + 1) / 64 - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    clip = torch.stack((x, y, torch.zeros_like(x), torch.ones_like(x)), -1).reshape(1, -1, 4)
    a = (torch.arange(n)[:, None] * (n + 1) + torch.arange(n)).flatten()
    quads = torch.stack((a, a + 1, a + n + 2, a, a + n + 2, a + n + 1), -1)
    faces = quads.reshape(-1, 3).int()
    for w in (1.0, 0.37, 3.3):  # not all exact in binary
        ids = CpuBackend().visibility(clip * w, faces, (64, 64))[0]
        covered = ids.flip(0)[: 4 * n + 1, : 4 * n + 1]
        rim = 0 if w == 1 else 1  # rounding may put the outline to either side of its pixels
        assert (covered[rim : 4 * n + 1 - rim, rim : 4 * n + 1 - rim] > 0).all()
        reversed_ids = CpuBackend().visibility(clip * w, faces.flip(0), (64, 64))[0]
        assert (reversed_ids > 0).equal(ids > 0)
        # On exact ties both orders choose the lower index of their own order.
        if w == 1.0:
            tied = (len(faces) + 1 - reversed_ids)[ids > 0] != ids[ids > 0]
            assert tied.any()
            assert (ids[ids > 0][tied] < (len(faces) + 1 - reversed_ids)[ids > 0][tied]).all()


def test_degenerate_and_non_finite_corners_cover_nothing():
    corners = torch.tensor(
        [[0.0, 0, 0, 1], [0.5, 0.5, 0, 1], [1, 1, 0, 1], [torch.nan, 0, 0, 1], [torch.inf, 0, 0, 1]]
    )
    faces = torch.tensor([[0, 1, 2], [0, 0, 0], [0, 1, 3], [0, 4, 2]], dtype=torch.int32)
    assert not CpuBackend().visibility(corners[None], faces, (16, 16)).any()


def test_results_do_not_depend_on_the_number_of_threads():
    mesh = PROCEDURAL_MESHES["torus"]()
    inside = Cameras.look_at(
        torch.zeros(1, 3), torch.tensor([[1.0, 0.3, 0]]), torch.tensor([150.0])
    )
    cameras = [CameraSampler().sample(0, 0, 1), inside]
    clip = [clip_of(camera, mesh.render_positions) for camera in cameras]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            ids = [CpuBackend().visibility(view, mesh.faces, (100, 60)) for view in clip]
            results.append(torch.cat(ids))
    finally:
        torch.set_num_threads(before)
    assert all(result.equal(results[0]) for result in results)
