import io

import numpy as np
import pytest
from PIL import Image

from sdslab.meshes.material import ALBEDO, ROUGHNESS
from sdslab.meshes.mesh_file import FileMaterial
from sdslab.meshes.source_material import LARGEST_MAP, material_maps


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def test_16_bit_grey_keeps_its_value():
    notes: list[str] = []
    grey = png(np.full((8, 8), 30000, np.uint16))
    maps = material_maps(FileMaterial(roughness=1.0, roughness_image=grey, color_image=grey), notes)
    assert maps[..., ROUGHNESS].numpy() == pytest.approx(30000 / 65535, abs=1e-5)
    assert maps[..., ALBEDO].numpy() == pytest.approx(30000 / 65535, abs=1e-5)
    assert notes == []


def test_a_tile_of_a_joint_texture_is_decoded_no_larger_than_it_fills():
    picture = np.zeros((512, 1024, 3), np.uint8)
    picture[:, 512:] = 200
    maps = material_maps(FileMaterial(color_image=png(picture)), [], grid=LARGEST_MAP // 128)
    assert maps.shape[:2] == (128, 128)
    assert maps[64, 20, 0] == pytest.approx(0, abs=0.01)
    assert maps[64, 100, 0] == pytest.approx(200 / 255, abs=0.01)
