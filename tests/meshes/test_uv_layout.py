import numpy as np
import pytest
import torch

from sdslab.errors import UserError
from sdslab.meshes.mesh import Mesh
from sdslab.meshes.mesh_assembly import assemble_mesh
from sdslab.meshes.mesh_file import MeshFile
from sdslab.meshes.uv_layout import Unwrapping

SQUARE = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)
MIRRORED = SQUARE * [-1, 1] + [1, 0]
CORNERS = np.array([[0, 1, 2], [0, 2, 3]])


def squares(
    *uv: np.ndarray, unwrapping: Unwrapping = "never", names: tuple[str, ...] = ("a",)
) -> Mesh:
    """Squares beside each other, part after part, each with the given texture coordinates."""
    positions = [np.insert(SQUARE + np.array([1.5 * k, 0]), 2, 0.0, axis=1) for k in range(len(uv))]
    faces = np.concatenate([CORNERS + 4 * k for k in range(len(uv))])
    part = np.repeat(np.minimum(np.arange(len(uv)), len(names) - 1), 2)
    file = MeshFile(
        np.concatenate(positions), faces, part, list(names), [-1] * len(names),
        uv=np.concatenate(uv),
    )  # fmt: skip
    return assemble_mesh("a", file, unwrapping)


def note(mesh: Mesh) -> str:
    return next(n for n in mesh.notes if "texture coordinates" in n)


def test_mirrored_halves_are_kept_together_and_told():
    half = np.array([0.5, 1])
    mesh = squares(SQUARE * half, MIRRORED * half, names=("left", "right"))
    expected = np.concatenate([SQUARE * half, MIRRORED * half])
    assert torch.equal(mesh.uv, torch.from_numpy(expected).float())
    assert not mesh.unwrapped
    assert note(mesh) == (
        "texture coordinates kept: faces share 100% of the texture used "
        "(mirrored faces 100%, 'left' and 'right' 100%) and are textured together"
    )
    assert mesh.tangents[:, 3].tolist() == [1] * 4 + [-1] * 4


def test_a_mirrored_half_that_is_moved_aside_shares_its_texels():
    aside = MIRRORED + np.array([1, 0])
    mesh = squares(SQUARE, aside)
    assert torch.equal(mesh.uv, torch.from_numpy(np.concatenate([SQUARE, aside])).float())
    assert "mirrored faces 100%" in note(mesh)


@pytest.mark.parametrize("unwrapping", ["never", "auto"])
def test_udim_tiles_lie_side_by_side(unwrapping: Unwrapping):
    inner = 0.1 + 0.8 * SQUARE
    moved = [np.array(tile) for tile in ((0, 0), (1, 0), (3, 2))]
    mesh = squares(*(inner + m for m in moved), unwrapping=unwrapping)
    assert note(mesh) == (
        "texture coordinates of 3 UDIM tiles (1001, 1002, 1024) laid side by side"
    )
    cells = (2 * mesh.uv).floor().view(3, 4, 2)
    assert cells.tolist() == [[c] * 4 for c in ([0, 0], [1, 0], [0, 1])]
    # each tile is placed alike, whatever of it is used
    within = (2 * mesh.uv).view(3, 4, 2) - cells
    torch.testing.assert_close(within[1], within[0])
    torch.testing.assert_close(within[2], within[0])


def test_parts_are_not_laid_side_by_side_where_coordinates_are_kept():
    names = ("a", "b")
    kept = squares(SQUARE, SQUARE, names=names)
    assert "'a' and 'b' 100%" in note(kept)
    assert "2 parts laid side by side" in note(
        squares(SQUARE, SQUARE, unwrapping="auto", names=names)
    )


@pytest.mark.parametrize("uv", [SQUARE * 20, SQUARE * 0.01], ids=["repeated", "small"])
def test_other_coordinates_of_little_use_are_kept_and_told(uv: np.ndarray):
    mesh = squares(uv)
    assert torch.equal(mesh.uv, torch.from_numpy(uv).float())
    assert note(mesh).startswith("texture coordinates kept: ")


def test_coordinates_that_cannot_be_kept_are_refused():
    for uv in (SQUARE * 1e5, np.full((4, 2), np.nan), SQUARE * 100):
        with pytest.raises(UserError, match="--unwrap auto"):
            squares(uv)


def test_unwrapping_anew_tells_how_to_keep_what_is_shared():
    mesh = squares(SQUARE, MIRRORED, unwrapping="auto")
    assert mesh.unwrapped
    assert any("--unwrap never would keep" in n for n in mesh.notes)
