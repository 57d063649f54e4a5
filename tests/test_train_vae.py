import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdslab.diffusion_space import LatentSpace
from sdslab.errors import UserError
from sdslab.train_vae import TrainVaeConfig, find_photographs, main, random_crops, train
from tests.conftest import random_image


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    for index in range(2):
        pixels = (random_image(24, 40, 3, seed=index) * 255).byte().numpy()
        picture = Image.fromarray(pixels).resize((480, 300))
        (folder / f"wallpaper{index}").mkdir(parents=True)
        picture.save(folder / f"wallpaper{index}" / "480x300.png")
        picture.resize((200, 200)).save(folder / f"wallpaper{index}" / "200x200.png")
        picture.save(folder / f"wallpaper{index}" / "screenshot.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_the_largest_of_a_set_of_sizes_is_taken_and_thumbnails_are_left_out(photographs: Path):
    found = find_photographs((photographs,))
    assert [path.name for path in found] == ["480x300.png", "480x300.png"]


def test_crops_are_in_range_reproducible_and_different():
    scales = [(random_image(80, 90, 3) * 255).byte().numpy()]
    one, same = (random_crops(scales, np.random.default_rng(0), 4, 64) for _ in range(2))
    assert one.shape == (4, 3, 64, 64)
    assert one.min() >= -1
    assert one.max() <= 1
    assert one.equal(same)
    assert not one[0].equal(one[1])


def test_a_short_training_run_leaves_a_model_that_loads_and_goes_on(
    photographs: Path, tmp_path: Path
):
    first = TrainVaeConfig(
        (photographs,), tmp_path / "vae", steps=6, batch=2, channels=(16, 16, 16, 16)
    )
    train(first)
    space = LatentSpace.load(tmp_path / "vae")
    assert space.encode(random_image(1, 3, 64, 64)).isfinite().all()
    with (tmp_path / "vae" / "training_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["step"] == "6"
    assert float(rows[-1]["mean_psnr_db"]) > 0

    train(TrainVaeConfig((photographs,), tmp_path / "more", steps=2, initial=tmp_path / "vae"))
    assert LatentSpace.load(tmp_path / "more").channels == 4


def test_folders_without_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="each FOLDER must be an existing folder"):
        find_photographs((tmp_path / "nowhere",))
    monkeypatch.setattr(sys, "argv", ["train_vae", str(tmp_path), "--out", str(tmp_path / "vae")])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    assert not (tmp_path / "vae").exists()
