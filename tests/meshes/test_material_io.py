from pathlib import Path

import numpy as np
import OpenEXR
import pytest
import torch
from PIL import Image

from sdslab.errors import UserError
from sdslab.meshes.material import MAP_FILES, constant_material, load_maps, map_pictures, save_maps


def random_maps(height: int = 16, width: int = 32) -> torch.Tensor:
    return torch.rand(height, width, 8, generator=torch.Generator().manual_seed(0))


def test_maps_come_back_rounded_to_eight_bits(tmp_path: Path):
    maps = random_maps()
    paths = save_maps(maps, tmp_path / "new")
    assert sorted(path.name for path in paths) == sorted(
        path.name for path in (tmp_path / "new").iterdir()
    )
    loaded = load_maps(tmp_path / "new")
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, (maps * 255).round() / 255)


def test_eight_bit_maps_come_back_exactly(tmp_path: Path):
    maps = (random_maps() * 255).round() / 255
    save_maps(maps, tmp_path)
    assert torch.equal(load_maps(tmp_path), maps)


def test_pictures_are_upright_and_packed_as_gltf_says():
    maps = constant_material(4, 8, albedo=(0.2, 0.4, 0.6), roughness=0.8, metallic=1.0)
    maps[3, 0, :3] = torch.tensor([1.0, 0.0, 0.0])  # v near 1, u near 0: the upper left corner
    pictures = map_pictures(maps)
    assert pictures["albedo"][0, 0].tolist() == [255, 0, 0]
    assert pictures["albedo"][3, 7].tolist() == [51, 102, 153]
    assert pictures["metallic_roughness"][0, 0].tolist() == [255, 204, 255]
    assert pictures["normal"][0, 0].tolist() == [128, 128, 255]
    assert pictures["roughness"].max() == 204
    assert pictures["metallic"].min() == 255


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.01], ids=["nan", "negative", "above-one"])
def test_values_outside_of_the_unit_range_are_refused(value: float, tmp_path: Path):
    maps = random_maps()
    maps[0, 0, 0] = value
    with pytest.raises(ValueError, match=r"maps must lie in \[0, 1\]"):
        save_maps(maps, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_maps_need_eight_channels():
    with pytest.raises(ValueError, match=r"\[h, w, 8\], got \[4, 4, 3\]"):
        map_pictures(torch.zeros(4, 4, 3))


def test_exr_files_hold_floats_and_linear_albedo(tmp_path: Path):
    maps = random_maps()
    maps[..., :3] = 0.5
    save_maps(maps, tmp_path, exr=True)

    def read(name: str) -> np.ndarray:
        with OpenEXR.File(str(tmp_path / name)) as file:
            (channel,) = file.channels().values()
            return channel.pixels

    np.testing.assert_allclose(read("albedo.exr"), ((0.5 + 0.055) / 1.055) ** 2.4, rtol=1e-6)
    np.testing.assert_array_equal(read("normal.exr"), maps.flip(0)[..., 5:].numpy())
    np.testing.assert_array_equal(read("roughness.exr"), maps.flip(0)[..., 3].numpy())
    np.testing.assert_array_equal(read("metallic.exr"), maps.flip(0)[..., 4].numpy())


def test_a_failing_exr_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):

    def full_disk(*_: object) -> None:
        raise RuntimeError("Failed to write pixel data: No space left on device")

    monkeypatch.setattr(OpenEXR.File, "write", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        save_maps(random_maps(), tmp_path, exr=True)
    assert not list(tmp_path.glob("*.exr")) + list(tmp_path.glob(".*"))


@pytest.mark.parametrize("mode", ["RGBA", "P", "L"])
def test_other_eight_bit_modes_are_read(mode: str, tmp_path: Path):
    save_maps(constant_material(4, 4, albedo=(0.6, 0.6, 0.6)), tmp_path)
    with Image.open(tmp_path / "albedo.png") as picture:
        converted = picture.convert(mode)
    converted.save(tmp_path / "albedo.png")
    np.testing.assert_allclose(load_maps(tmp_path)[..., :3], 0.6, atol=0.005)


def _remove(path: Path) -> None:
    path.unlink()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def _resize(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path)


def _deepen(path: Path) -> None:
    Image.fromarray(np.zeros((16, 32), np.uint16)).save(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove, "must be a readable PNG: there is none"),
        (_truncate, "must be a readable PNG"),
        (_resize, "must be of one size, got"),
        (_deepen, "eight bits a channel .* got mode I;16"),
    ],
    ids=["missing", "truncated", "size", "16-bit"],
)
@pytest.mark.parametrize("name", MAP_FILES)
def test_damaged_maps_are_refused(damage, message: str, name: str, tmp_path: Path):
    save_maps(random_maps(), tmp_path)
    damage(tmp_path / name)
    with pytest.raises(UserError, match=message) as raised:
        load_maps(tmp_path)
    assert "\n" not in str(raised.value)


def test_sides_must_be_powers_of_two(tmp_path: Path):
    save_maps(random_maps(12, 16), tmp_path)
    with pytest.raises(UserError, match="powers of two, got 16x12"):
        load_maps(tmp_path)


def test_a_file_is_no_folder_for_maps(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_maps(random_maps(), tmp_path / "file")
