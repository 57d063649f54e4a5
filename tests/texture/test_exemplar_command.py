"""``--exemplar`` end to end, on tiny maps and few steps."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sdslab.errors import UserError
from sdslab.meshes.mesh_io import load_mesh
from sdslab.texture import stage
from sdslab.texture.argument_checks import check
from sdslab.texture.arguments import (
    Arguments,
    Distillation,
    Exemplar,
    Model,
    Optimization,
    Output,
    Rendering,
    Subject,
)
from sdslab.texture.outputs import seen_words
from sdslab.texture.runner import run

RED, BLUE = (200, 40, 40), (40, 40, 200)


pytestmark = pytest.mark.usefixtures("own_cache")


def arguments(
    out: Path, *photos: str | Path, guidance: str | None = None, init: str | None = None,
    **options: Any,
) -> Arguments:  # fmt: skip
    return Arguments(
        Subject(
            mesh="sphere",
            exemplar=tuple(map(str, photos)),
            guidance=guidance,  # type: ignore[arg-type]
            init=init,
        ),
        # So large a photo that all levels but the first show enough of it on so small a texture.
        replace(Exemplar(exemplar_scale=8.0), **options),  # type: ignore[arg-type]
        Model(),
        Distillation(),
        Optimization(texture_size=64, steps=2, views=2),
        Rendering(unlit=True),
        Output(out=str(out), turntable=0, picture_size=32, preview_every=0, device="cpu"),
    )


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (48, 48)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def halves(path: Path, left: tuple[int, int, int], right: tuple[int, int, int]) -> Path:
    both = Image.new("RGB", (64, 64), left)
    both.paste(right, (32, 0, 64, 64))
    both.save(path)
    return path


def mean_colour(out: Path) -> torch.Tensor:
    from sdslab.rendering.cpu_backend import CpuBackend
    from sdslab.rendering.texels import covered_texels

    with Image.open(out / "maps" / "albedo.png") as albedo:
        pixels = torch.tensor(list(albedo.convert("RGB").get_flattened_data())).float()
    covered = covered_texels(load_mesh("sphere"), (64, 64), CpuBackend()).flip(0)
    return pixels.view(64, 64, 3)[covered].mean(0)


@pytest.mark.parametrize(("stage_two", "steps"), [("mode", 4), ("sr-sds", 6)])
def test_a_photo_textures_a_mesh_and_its_estimates_are_told(
    stage_two: str, steps: int, tmp_path: Path, capsys
):
    out = tmp_path / "run"
    run(arguments(out, "gravel", stage_two=stage_two))
    for file in ("mesh.glb", "contact_sheet.png", "obj", "maps/normal.png"):
        assert (out / file).exists(), file
    results = json.loads((out / "run.json").read_text())["metrics"]
    assert results["material"] == {
        "albedo": "exemplar",
        "roughness": "estimated from the albedo",
        "normal": "estimated from the albedo",
        "metallic": "constant",
    }
    assert results["steps"] == steps  # of two each; the coarsest level would show no texture
    assert ("mode_seconds" in results) == (stage_two == "mode")
    assert results["scores"].keys() == {
        "sliced_wasserstein", "crop", "gabor", "gabor_crop", "contrast",
        "gradient_energy", "seam_jump",
    }  # fmt: skip
    assert 0 < results["scores"]["sliced_wasserstein"] < 0.3
    with Image.open(out / "inputs" / "photograph-1.png") as photo:
        assert max(photo.size) <= 384
    printed = capsys.readouterr().out
    assert "estimates from the albedo" in printed
    assert f"patch distance {results['scores']['sliced_wasserstein']:.3f}" in printed


@pytest.mark.parametrize(
    ("unseen", "words"), [(0, "every texel was seen"), (1, "1 of 1,000,000 texels were not seen")]
)
def test_no_texel_is_said_to_be_unseen_that_is_not(unseen: int, words: str):
    covered = torch.ones(1000, 1001, dtype=torch.bool)
    covered[:, -1] = False
    seen = torch.ones_like(covered)
    seen[0, :unseen] = False
    line, share = seen_words(seen, covered)
    assert line.startswith(words)
    assert share == 1 - unseen / 1_000_000


@pytest.mark.parametrize(
    ("total", "every", "shown"),
    [
        (1, None, [0]), (3, None, [0, 1, 2]), (40, None, [0, 13, 26, 39]),
        (1000, None, [0, 333, 666, 999]), (40, 15, [0, 15, 30]), (40, 0, []), (40, 100, [0]),
    ],
)  # fmt: skip
def test_previews_are_spread_over_a_stage_or_come_every_so_many_steps(
    total: int, every: int | None, shown: list[int]
):
    assert [i for i in range(total) if stage.is_previewed(i, total, every)] == shown


def test_albedo_only_estimates_nothing(tmp_path: Path):
    run(arguments(tmp_path / "run", "gravel", material="albedo-only"))
    results = json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]
    assert set(results["material"].values()) == {"exemplar", "constant"}
    with Image.open(tmp_path / "run" / "maps" / "normal.png") as normal:
        values = torch.tensor(list(normal.get_flattened_data()))
    assert (values - torch.tensor([128, 128, 255])).abs().max() <= 1  # 0.5 lies between two


@pytest.mark.parametrize("size", [(1, 1), (40, 40), (400, 3)], ids=str)
def test_a_photo_of_one_colour_gives_that_colour(size: tuple[int, int], tmp_path: Path):
    run(arguments(tmp_path / "run", picture(tmp_path / "red.png", RED, size)))
    torch.testing.assert_close(
        mean_colour(tmp_path / "run"), torch.tensor(RED).float(), atol=4.0, rtol=0
    )


def test_only_what_the_mask_shows_is_copied(tmp_path: Path):
    photo = halves(tmp_path / "photo.png", RED, BLUE)
    mask = halves(tmp_path / "mask.png", (255, 255, 255), (0, 0, 0))
    run(arguments(tmp_path / "run", photo, exemplar_mask=(str(mask),)))
    torch.testing.assert_close(
        mean_colour(tmp_path / "run"), torch.tensor(RED).float(), atol=4.0, rtol=0
    )


@pytest.mark.parametrize(("tag", "tagged", "other"), [("r", 0, 2), ("b", 2, 0)])
def test_the_tagged_photo_leads(tag: str, tagged: int, other: int, tmp_path: Path):
    red, blue = picture(tmp_path / "red.png", RED), picture(tmp_path / "blue.png", BLUE)
    run(arguments(tmp_path / "run", f"r={red}", f"b={blue}", tag=tag, tag_guidance=1.0))
    colour = mean_colour(tmp_path / "run")
    assert colour[tagged] > colour[other] + 20


def test_given_maps_are_laid_out_with_the_photo(tmp_path: Path):
    photo = halves(tmp_path / "photo.png", RED, BLUE)
    roughness = halves(tmp_path / "rough.png", (240, 240, 240), (60, 60, 60))
    normal = picture(tmp_path / "normal.png", (128, 128, 255), (64, 64))
    options: dict[str, Any] = {
        "exemplar_roughness": (str(roughness),),
        "exemplar_normal": (str(normal),),
    }
    run(arguments(tmp_path / "run", photo, guidance="none", **options))
    results = json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]
    assert results["material"] == dict.fromkeys(("albedo", "roughness", "normal"), "exemplar") | {
        "metallic": "constant"
    }
    with (
        Image.open(tmp_path / "run" / "maps" / "albedo.png") as albedo,
        Image.open(tmp_path / "run" / "maps" / "metallic_roughness.png") as packed,
    ):
        red = torch.tensor(list(albedo.convert("RGB").get_flattened_data()))[:, 0].float()
        rough = torch.tensor(list(packed.convert("RGB").get_flattened_data()))[:, 1].float()
    assert torch.corrcoef(torch.stack((red, rough)))[0, 1] > 0.99
    guided = arguments(tmp_path / "guided", photo, **options)
    run(guided)
    assert (
        json.loads((tmp_path / "guided" / "run.json").read_text())["metrics"]["material"]
        == (results["material"])
    )


def test_a_photo_with_a_direction_is_laid_out_in_each_way(tmp_path: Path):
    """Stripes that lie level in the photo lie level on the object with "up" alone."""
    rows = torch.arange(96)[:, None].expand(96, 96)
    stripes = (127.5 + 127.5 * torch.sin(rows * (2 * torch.pi / 12))).round().to(torch.uint8)
    Image.fromarray(stripes.numpy()).save(tmp_path / "stripes.png")
    levelness = {}
    for orient in ("up", "free", "flow"):
        run(arguments(tmp_path / orient, tmp_path / "stripes.png", orient=orient))
        with Image.open(tmp_path / orient / "maps" / "albedo.png") as albedo:
            grey = torch.tensor(list(albedo.convert("L").get_flattened_data())).view(64, 64).float()
        inner = grey[16:48]  # apart from the sphere's poles; u runs along its circles of latitude
        along, across = (inner.diff(dim=d).square().mean() for d in (1, 0))
        levelness[orient] = float(across / along)
    assert levelness["up"] > 1.3 > levelness["flow"]
    assert levelness["up"] > 1.3 * levelness["free"]


def test_a_start_from_the_projected_photo_stays_nearer_to_it_than_one_from_grey(tmp_path: Path):
    def albedo(out: Path) -> torch.Tensor:
        with Image.open(out / "maps" / "albedo.png") as image:
            return torch.tensor(list(image.convert("RGB").get_flattened_data())).float()

    run(arguments(tmp_path / "projected", "gravel", guidance="none"))
    run(arguments(tmp_path / "from it", "gravel", init="triplanar", stage_two="sr-sds"))
    run(arguments(tmp_path / "from grey", "gravel", stage_two="sr-sds"))
    aim = albedo(tmp_path / "projected")
    distances = [(albedo(tmp_path / n) - aim).square().mean() for n in ("from it", "from grey")]
    assert distances[0] < distances[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exemplar_mask": ("a.png", "b.png")}, "--exemplar-mask must be given once for each"),
        ({"exemplar_mask": ("dots.png",)}, "a square of 29% of its height, got none"),
        ({"tag": "moss"}, "--tag must be that of an exemplar"),
        ({"exemplar_normal": ("missing.png",)}, "existing file"),
        ({"tag_guidance": -1.0}, "--tag-guidance must be"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        picture(tmp_path / name, RED)
    dots = Image.new("L", (64, 64))
    dots.putdata([255 * (i % 8 < 4) for i in range(64 * 64)])
    dots.save(tmp_path / "dots.png")
    wrong = arguments(tmp_path / "run", "gravel", **options)

    def attempt() -> None:
        check(wrong)
        run(wrong)

    with pytest.raises(UserError, match=message):
        attempt()
    assert not (tmp_path / "run" / "run.json").exists()


def test_an_unreadable_photo_is_one_line_and_exit_2(tmp_path: Path):
    (tmp_path / "photo.png").write_bytes(b"no picture at all")
    command = [sys.executable, "-m", "sdslab.texture", "sphere", "--exemplar", "photo.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "readable picture" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "sphere-photo" / "run.json").exists()
