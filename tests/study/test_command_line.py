import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from PIL import Image

from sdslab.errors import UserError
from sdslab.runs.lock import RunLock
from sdslab.study.__main__ import Overrides, Selection, run
from tests.study.conftest import cells_of


def command_line(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sdslab.study", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )


def test_a_study_writes_its_table_pictures_and_record(study: Path, tmp_path: Path):
    out = tmp_path / "figures"
    done = command_line(study, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "latent_dip" in done.stderr
    assert "dec(enc(θ))" in done.stdout
    names = {path.name for path in out.iterdir()}
    suffixes = {"png", "pdf", "csv", "json", "md", "convergence.png", "convergence.pdf"}
    assert names == {f"small.{suffix}" for suffix in suffixes} | {"small"}

    table = pd.read_csv(out / "small.csv")
    assert list(table.columns) == [
        "diffusion", "parameterization", "readout", "image", "seed", "psnr_db", "psnr_clamped_db",
        "latent_mse", "vae_ceiling_db", "paper_psnr_db", "steps", "seconds", "cell",
        "latent_mse_start",
    ]  # fmt: skip
    assert len(table) == 2 * (1 + 2 + 2)
    assert set(table["readout"]) == {"theta", "decoded"}
    assert np.isfinite(np.asarray(table["psnr_db"])).all()
    in_latent_space = np.asarray(table["diffusion"] == "latent")
    assert (np.isfinite(np.asarray(table["latent_mse"])) == in_latent_space).all()
    papers = table.dropna(subset="paper_psnr_db").groupby("readout")["paper_psnr_db"].unique()
    assert set(papers["theta"]) == {148.02, 8.53}
    assert set(papers["decoded"]) == {26.38}

    record = json.loads((out / "small" / "run.json").read_text())
    assert record["command"].startswith("python -m sdslab.study ")
    assert record["config"]["settings"]["size"] == 64
    assert (record["outcome"], record["seeds"]) == ("finished", [0])
    cells = {cell["name"] for cell in record["config"]["cells"]}
    assert set(record["seconds"]) == cells | {"total"}
    assert np.isfinite(record["metrics"]["latent_dip"]["decoded_psnr_db"])
    assert (out / "small" / "report.html").exists()
    everything = json.loads((out / "small.json").read_text())
    assert len(everything["rows"]) == len(table)
    assert everything["curves"][0]["curve"]
    assert "| pixel | RGB pixels | θ |" in (out / "small.md").read_text()
    for name in ("small.png", "small.convergence.png"):
        pixels = np.asarray(Image.open(out / name).convert("L"))
        assert pixels.std() > 10, name


def test_parts_of_a_study_do_not_overwrite_its_figure(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    run(Selection(str(study), only=("pixel_rgb",)), Overrides(steps=2))
    assert (tmp_path / "figures" / "custom" / "small.png").is_file()
    assert not (tmp_path / "figures" / "small.png").exists()
    assert "preset default, changed" in (tmp_path / "figures/custom/small.md").read_text("utf-8")


def test_odd_file_names_are_drawn_and_stored(study: Path, tmp_path: Path):
    name = tmp_path / f"$a_$b [final] {'ж' * 60}.png"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(name)
    out = tmp_path / "figures"
    selection = Selection(str(study), only=("pixel_rgb",))
    run(selection, Overrides(out=str(out), image=(str(name),), steps=2))
    assert (out / "small.png").is_file()
    assert all(len(cell) < 90 for cell in cells_of(out))


def test_a_diverging_cell_ends_in_one_line(study: Path, tmp_path: Path):
    study.write_text(study.read_text().replace("learning_rate = 0.1", "learning_rate = 1e30"))
    with pytest.raises(UserError, match="pixel_rgb chelsea seed 0: the gradient of θ must be"):
        run(Selection(str(study), only=("pixel_rgb",)), Overrides(out=str(tmp_path / "figures")))


def test_a_second_process_in_the_same_folder_is_refused(study: Path, tmp_path: Path):
    with (
        RunLock(tmp_path / "figures" / study.stem),
        pytest.raises(UserError, match="one process at a time"),
    ):
        run(Selection(str(study)), Overrides(out=str(tmp_path / "figures")))


def test_without_arguments_the_studies_are_listed():
    done = command_line()
    assert done.returncode == 0
    assert {"figure2", "texture_step"} <= {line.split()[0] for line in done.stdout.splitlines()}
    assert done.stderr == ""


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['study', '--help']\n"
        "try:\n    from sdslab.study.__main__ import main; main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'matplotlib', 'pandas', 'numpy', 'triton'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("heavy: []")
    assert "--image" in done.stdout


BAD_INPUT = {
    "missing image": (["--image", "nowhere.png"], "image must be an existing file"),
    "unreadable image": (["--image", "{tmp}/text.png"], "image must be a readable picture"),
    "non-finite image": (["--image", "{tmp}/nan.npy"], "finite values only"),
    "missing VAE folder": (["--vae", "./nowhere"], "--vae must be an existing folder"),
    "empty VAE folder": (["--vae", "{tmp}"], "no config.json"),
    "hub id offline": (["--vae", "stabilityai/sd-vae-ft-mse"], "cannot be fetched from the hub"),
    "size for the VAE": (["--size", "100", "--only", "latent_rgb"], "divisible by 8, got 100×100"),
    "size for the DIP": (["--size", "72", "--only", "latent_dip"], "divisible by 32"),
    "size zero": (["--size", "0"], "size must be from 1 to"),
    "no steps": (["--steps", "0"], "steps must be a positive number"),
    "unknown cell": (["--only", "pixel"], "--only must name one of pixel_rgb, latent_rgb"),
    "unknown preset": (["--preset", "huge"], "preset must be one of none here, got 'huge'"),
    "unknown device": (["--device", "tpu"], "--device must be auto, cpu, cuda or cuda:N"),
    "absent GPU": (["--device", "cuda:63"], "--device cuda:63 needs a CUDA GPU"),
    "twice the same seed": (["--seeds", "1", "1"], "--seeds must be different"),
    "seed of 65 bits": (["--seeds", str(2**64)], "--seeds must be different and within"),
    "twice the same image": (["--image", "coffee", "--image", "coffee"], "must name different"),
    "too large": (["--size", "3000000"], "size must be from 1 to 8192"),
    "no threads": (["--threads", "0"], "--threads must be a positive number"),
    "file as folder": (["--out", "{tmp}/text.png"], "--out must be a folder that can be written"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_gets_one_line_exit_code_2_and_nothing_written(
    arguments: list[str],
    message: str,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    from sdslab.study.__main__ import main

    (tmp_path / "text.png").write_text("not a picture")
    np.save(tmp_path / "nan.npy", np.full((8, 8, 3), np.nan))
    before = sorted(tmp_path.rglob("*"))
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "figures")]
    monkeypatch.setattr(sys, "argv", ["sdslab.study", str(study), *arguments, *out])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_unknown_studies_and_options_exit_with_2():
    done = command_line("figure3")
    assert done.returncode == 2
    assert "STUDY must be one of exemplar, exemplar_mesh, figure2" in done.stderr
    assert command_line("figure2", "--colour").returncode == 2
    assert command_line("figure2", "--quick", "--preset", "full").returncode == 2


def test_an_autoencoder_without_a_posterior_serves_every_latent_row(tmp_path: Path):
    """AutoencoderTiny (TAESD) has no distribution, no scaling and no normalisation."""
    widths = (8, 8, 8, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoencoderTiny(
            encoder_block_out_channels=widths, decoder_block_out_channels=widths
        ).save_pretrained(tmp_path / "tiny")
    rows = ("latent_rgb", "latent_rgb_grey", "latent_direct", "vae_ceiling")
    overrides = Overrides(
        out=str(tmp_path / "out"), image=("chelsea",), size=64, vae=str(tmp_path / "tiny"), steps=3
    )
    run(Selection("figure2", only=rows), overrides)
    table = pd.read_csv(tmp_path / "out" / "figure2.csv")
    assert set(table.cell) == set(rows)
    assert np.isfinite(table[["psnr_db", "latent_mse", "vae_ceiling_db"]]).all(axis=None)
    moved = table[table.cell == "latent_rgb_grey"]
    assert (moved.latent_mse != moved.latent_mse_start).all()
