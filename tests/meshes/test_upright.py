import numpy as np
import pytest
import torch
from torch import Tensor

from sdslab.errors import UserError
from sdslab.meshes.mesh import QUATERNIONS, Up, turned_up, z_up_note
from sdslab.meshes.mesh_io import load_mesh
from sdslab.meshes.procedural_meshes import apple, sphere, torus

AXES: dict[Up, list[float]] = {
    "x": [1, 0, 0], "-x": [-1, 0, 0], "y": [0, 1, 0],
    "-y": [0, -1, 0], "z": [0, 0, 1], "-z": [0, 0, -1],
}  # fmt: skip


def matrix(up: Up) -> Tensor:
    """[3, 3]: the rotation as its columns show it."""
    return turned_up(torch.eye(3, dtype=torch.float64), up).T


def cylinder(axis: int) -> Tensor:
    angle = torch.linspace(0, 2 * np.pi, 65, dtype=torch.float64)[:-1]
    ring = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], 1)
    heights = torch.linspace(0, 4, 9, dtype=torch.float64)
    points = torch.cat([ring + torch.tensor([0.0, 0, 1]) * height for height in heights])
    return points.roll(axis - 2, 1)


@pytest.mark.parametrize("up", AXES)
def test_the_axis_comes_to_y_by_the_least_rotation(up: Up):
    turn = matrix(up)
    axis = torch.tensor(AXES[up], dtype=torch.float64)
    y = torch.tensor([0.0, 1, 0], dtype=torch.float64)
    assert torch.equal(turn @ axis, y)
    assert torch.equal(turn @ turn.T, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(turn) == 1
    # its angle is the one between the axis and +Y
    assert (turn.trace() - 1) / 2 == axis @ y


@pytest.mark.parametrize("up", AXES)
def test_quaternions_turn_alike(up: Up):
    x, y, z, w = QUATERNIONS[up]
    vectors = torch.eye(3, dtype=torch.float64)
    axis = torch.tensor([[x, y, z]], dtype=torch.float64).expand(3, 3)
    twice = 2 * torch.linalg.cross(axis, vectors)
    turned = vectors + w * twice + torch.linalg.cross(axis, twice)
    torch.testing.assert_close(turned, turned_up(vectors, up))


@pytest.mark.parametrize("axis", ["x", "y", "z"])
@pytest.mark.parametrize("is_stl", [False, True])
def test_what_stands_along_z_only_is_noted(axis: str, is_stl: bool):
    note = z_up_note(cylinder("xyz".index(axis)), is_stl)
    assert (note is not None) == (axis == "z" or (is_stl and axis == "x"))
    assert note is None or "--up z" in note


@pytest.mark.parametrize("make", [apple, sphere, torus])
def test_shapes_that_say_nothing_are_not_noted(make):
    assert z_up_note(make().positions, is_stl=False) is None


def test_a_cube_and_a_flat_sheet_are_not_noted():
    cube = torch.cartesian_prod(*3 * [torch.tensor([0.0, 1.0], dtype=torch.float64)])
    assert z_up_note(cube, is_stl=False) is None
    assert z_up_note(cube * torch.tensor([1.0, 1, 0]), is_stl=False) is None


def test_built_in_meshes_have_y_up():
    assert load_mesh("torus", up="y").up == "y"
    with pytest.raises(UserError, match="--up is for mesh files"):
        load_mesh("torus", up="z")
