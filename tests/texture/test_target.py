from pathlib import Path

import pytest
import torch
from PIL import Image

from sdslab.errors import UserError
from sdslab.meshes.export_glb import export_glb
from sdslab.meshes.export_obj import export_obj
from sdslab.meshes.material import ALBEDO, NORMAL, ROUGHNESS, constant_material, save_maps
from sdslab.meshes.mesh_io import load_mesh
from sdslab.pictures.metrics import psnr_db
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.texels import covered_texels
from sdslab.texture.inputs import load_target, own_maps, resize_maps


def smooth_material(size: int = 64) -> torch.Tensor:
    coarse = torch.rand(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    maps = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")[0]
    maps = maps.movedim(0, -1).contiguous()
    maps[..., 5:] = torch.tensor([0.5, 0.5, 1.0])
    return maps


def test_a_picture_is_the_albedo_with_its_last_row_at_v_0(tmp_path: Path):
    picture = Image.new("RGB", (32, 32), "red")
    picture.paste("blue", (0, 16, 32, 32))
    picture.save(tmp_path / "p.png")
    maps = load_target(str(tmp_path / "p.png"), load_mesh("sphere"), 32)
    assert maps[0, 0, ALBEDO].tolist() == [0, 0, 1]
    assert maps[-1, 0, ALBEDO].tolist() == [1, 0, 0]
    assert (maps[..., ROUGHNESS] == 0.5).all()


@pytest.mark.parametrize("kind", ["glb", "obj", "run"])
def test_a_textured_mesh_gives_its_maps_back(kind: str, tmp_path: Path):
    mesh, maps = load_mesh("torus"), smooth_material()
    if kind != "obj":
        source = tmp_path / "mesh.glb"
        export_glb(mesh, maps, source)
        if kind == "run":  # whose folder is given
            (tmp_path / "run.json").touch()
            source = tmp_path
    else:
        source = export_obj(mesh, maps, tmp_path)[0]
    target = load_target(str(source), mesh, 64)
    compared = slice(0, 5)
    assert (target - maps)[..., compared].abs().max() < 1 / 255
    again = load_mesh(tmp_path / "mesh.glb" if kind == "run" else source)
    assert (own_maps(again, 64) - maps)[..., compared].abs().max() < 1 / 255


def test_a_folder_of_maps_is_a_target(tmp_path: Path):
    maps = smooth_material()
    save_maps(maps, tmp_path / "maps")
    target = load_target(str(tmp_path / "maps"), load_mesh("torus"), 64)
    assert (target - maps)[..., :5].abs().max() < 1 / 255


@pytest.mark.parametrize("shape", [(8, 8), (64, 64), (8, 64)], ids=["larger", "smaller", "both"])
def test_maps_are_resized_as_a_texture_that_repeats(shape: tuple[int, int]):
    maps = torch.rand(*shape, 8, generator=torch.Generator().manual_seed(0))
    resized = resize_maps(maps, 16)
    assert resized.shape == (16, 16, 8)
    # Turning the texture around turns the result around: no border is special.
    moved = resize_maps(maps.roll((shape[0] // 4, shape[1] // 4), (0, 1)), 16)
    torch.testing.assert_close(moved, resized.roll((4, 4), (0, 1)))
    lengths = (2 * resized[..., NORMAL] - 1).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(16, 16))
    means = [m[..., :5].mean((0, 1)) for m in (maps, resized)]
    torch.testing.assert_close(*means)


def test_maps_move_to_the_meshs_own_texture_coordinates(tmp_path: Path):
    mesh, maps = load_mesh("torus"), smooth_material()
    export_glb(mesh, maps, tmp_path / "mesh.glb")
    unwrapped = load_mesh(tmp_path / "mesh.glb", "always")
    assert unwrapped.unwrapped
    target = load_target(str(tmp_path / "mesh.glb"), unwrapped, 256)
    # The same colours at the same places of the surface.
    covered = covered_texels(unwrapped, (256, 256), CpuBackend())
    corner_uv = unwrapped.uv[unwrapped.faces.long()]
    middle = corner_uv.mean(1)
    own = mesh.uv[mesh.faces.long()].mean(1)
    zeros = torch.zeros(len(middle), 4)
    backend = CpuBackend()
    assert covered.any()
    there = backend.sample_texture(target, middle, zeros)
    here = backend.sample_texture(maps, own, zeros)
    assert psnr_db(there[:, :5], here[:, :5]) > 35


def test_another_mesh_or_one_without_texture_is_refused(tmp_path: Path):
    torus, sphere = load_mesh("torus"), load_mesh("sphere")
    export_glb(torus, constant_material(8, 8), tmp_path / "torus.glb")
    with pytest.raises(UserError, match="it must have the faces of the mesh"):
        load_target(str(tmp_path / "torus.glb"), sphere, 8)
    (tmp_path / "plain.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    with pytest.raises(UserError, match="it must have a texture"):
        load_target(str(tmp_path / "plain.obj"), torus, 8)
    with pytest.raises(UserError, match="--init source needs a mesh with a texture"):
        own_maps(torus, 8)
    with pytest.raises(UserError, match="image must be an existing file or one of"):
        load_target("no-such-picture", torus, 8)
    for name in ("x" * 300, "x" * 300 + ".obj", "x" * 5000):  # longer than file systems allow
        with pytest.raises(UserError, match="must be an existing file"):
            load_target(name, torus, 8)
