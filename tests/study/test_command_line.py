import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import load_file

from sdslab.errors import UserError
from sdslab.run_lock import RunLock
from sdslab.study.__main__ import Overrides, Selection, run
from sdslab.study.results import COLUMNS

STUDY = """
title = "A small study"
[settings]
images = ["chelsea", "coffee"]
seeds = [0]
size = 16
[[cells]]
name = "pixel_rgb"
label = "RGB pixels"
diffusion = "pixel"
parameterization = "pixel"
initialization = "noise"
paper_psnr_db = { theta = 148.02 }
optimization = { optimizer = "sgd", learning_rate = 0.1, steps = 20 }
[[cells]]
name = "latent_rgb"
label = "RGB pixels"
diffusion = "latent"
parameterization = "pixel"
initialization = "noise"
paper_psnr_db = { theta = 8.53, decoded = 26.38 }
optimization = { learning_rate = 0.05, steps = 2 }
[[cells]]
name = "latent_dip"
label = "DIP"
diffusion = "latent"
parameterization = "dip"
width = 4
optimization = { steps = 2 }
"""


@pytest.fixture
def study(tmp_path: Path, tiny_vae_folder: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(STUDY.replace("size = 16", f"size = 64\nvae = '{tiny_vae_folder}'"))
    return path


def command_line(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sdslab.study", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )


def cells_of(out: Path) -> dict[str, float]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "small" / "cells").iterdir()}


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
    assert list(table.columns) == list(COLUMNS)
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


def test_running_again_does_only_what_is_missing(study: Path, tmp_path: Path):
    out = tmp_path / "figures"
    selection, overrides = Selection(str(study)), Overrides(out=str(out))
    run(selection, overrides)
    first, table = cells_of(out), (out / "small.csv").read_bytes()
    removed = next(name for name in first if name.startswith("latent_rgb-coffee"))
    (out / "small" / "cells" / removed).unlink()
    run(selection, overrides)
    second = cells_of(out)
    assert {name for name in first if first[name] != second[name]} == {removed}
    before, after = (
        pd.read_csv(file).drop(columns="seconds")
        for file in (out / "small.csv", _written(tmp_path / "table.csv", table))
    )
    pd.testing.assert_frame_equal(before, after)

    run(Selection(str(study), fresh=True), overrides)
    third = cells_of(out)
    assert third.keys() == second.keys()
    assert all(third[name] != second[name] for name in second)


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_changed_configuration_never_reuses_old_cells(study: Path, tmp_path: Path):
    out = tmp_path / "figures"
    selection = Selection(str(study), only=("pixel_rgb",))
    run(selection, Overrides(out=str(out), image=("chelsea",)))
    for changed in (
        Overrides(out=str(out), image=("chelsea",), steps=21),
        Overrides(out=str(out), image=("chelsea",), seeds=(1,)),
        Overrides(out=str(out), image=("chelsea",), size=96),
        Overrides(out=str(out), image=("chelsea",), dtype="float64"),
        Overrides(out=str(out), image=("rocket",)),
    ):
        before = cells_of(out)
        run(selection, changed)
        assert len(cells_of(out)) == len(before) + 1


def test_pixel_cells_survive_another_vae_and_latent_cells_do_not(study: Path, tmp_path: Path):
    out = tmp_path / "figures"
    only = ("pixel_rgb", "latent_rgb")
    run(Selection(str(study), only=only), Overrides(out=str(out), image=("chelsea",)))
    before = cells_of(out)
    run(
        Selection(str(study), only=only),
        Overrides(out=str(out), image=("chelsea",), vae="shipped"),
    )
    new = set(cells_of(out)) - set(before)
    assert [name.split("-")[0] for name in new] == ["latent_rgb"]


def test_other_code_never_reuses_old_cells(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "figures"
    selection = Selection(str(study), only=("pixel_rgb",))
    overrides = Overrides(out=str(out), image=("chelsea",))
    run(selection, overrides)
    monkeypatch.setattr("sdslab.study.runner.code_digest", lambda: "other")
    run(selection, overrides)
    assert len(cells_of(out)) == 2


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
    with pytest.raises(UserError, match="cell pixel_rgb: the gradient of θ must be finite"):
        run(Selection(str(study), only=("pixel_rgb",)), Overrides(out=str(tmp_path / "figures")))


def test_an_interrupted_study_goes_on_where_it_was(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from sdslab.study import reconstruct

    out = tmp_path / "figures"
    real, runs = reconstruct.run_cell, []

    def interrupted_at_the_third(cell, problem, seed, progress):
        runs.append(cell.name)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return real(cell, problem, seed, progress)

    monkeypatch.setattr(reconstruct, "run_cell", interrupted_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(Selection(str(study)), Overrides(out=str(out)))
    assert len(cells_of(out)) == 2
    run(Selection(str(study)), Overrides(out=str(out)))
    assert len(runs) == 3 + 4
    assert len(cells_of(out)) == 6


def test_an_interrupted_cell_goes_on_at_its_step(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    from sdslab.study import reconstruct, runner

    real, started_at = reconstruct.run_cell, []

    def interrupted(cell, problem, seed, progress):
        started_at.append(progress.loop.index)
        for number, update in enumerate(real(cell, problem, seed, progress)):
            yield update
            if len(started_at) == 1 and number == 7:
                raise KeyboardInterrupt

    def images(out: str) -> list[np.ndarray]:
        cells = sorted((tmp_path / out / study.stem / "cells").iterdir())
        return [load_file(path)["theta"] for path in cells]

    monkeypatch.setattr(reconstruct, "run_cell", interrupted)
    monkeypatch.setattr(runner, "_write_results", lambda *_: None)
    first = Selection(str(study), only=("pixel_rgb",))
    with pytest.raises(KeyboardInterrupt):
        run(first, Overrides(out=str(tmp_path / "out")))
    assert len(list(tmp_path.glob("out/*/cells/*/checkpoint-*"))) == 1
    run(first, Overrides(out=str(tmp_path / "out")))
    assert started_at == [0, 7, 0]
    assert ": goes on at step 7\n" in capsys.readouterr().err
    run(first, Overrides(out=str(tmp_path / "straight")))
    assert len(images("out")) == 2
    for resumed, straight in zip(images("out"), images("straight"), strict=True):
        assert np.array_equal(resumed, straight)


def resume(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """The exit code of ``--resume``, None if it ran to its end."""
    from sdslab.study.__main__ import main

    monkeypatch.setattr(sys, "argv", ["sdslab.study", "--resume", *arguments])
    try:
        return main()
    except SystemExit as ended:
        return ended.code


def test_a_study_is_resumed_from_anywhere(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from sdslab.study import reconstruct

    real, runs = reconstruct.run_cell, []

    def interrupted_at_the_second(cell, problem, seed, progress):
        runs.append((cell.name, cell.optimization))
        if len(runs) == 2:
            raise KeyboardInterrupt
        return real(cell, problem, seed, progress)

    monkeypatch.setattr(reconstruct, "run_cell", interrupted_at_the_second)
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    only = ("pixel_rgb", "latent_dip")
    with pytest.raises(KeyboardInterrupt):
        run(Selection(str(study), only=only), Overrides(image=("photo.png",), out="results"))
    monkeypatch.chdir(elsewhere)
    assert resume(monkeypatch, "../results/small") is None
    assert [name for name, _ in runs] == ["pixel_rgb", "latent_dip", "latent_dip"]
    assert runs[1] == runs[2]  # infinite limits of gradients, too
    assert not list(elsewhere.iterdir())
    table = pd.read_csv(tmp_path / "results" / "small.csv")
    assert list(table["cell"].unique()) == list(only)


def test_what_cannot_be_resumed_says_why(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    run(Selection(str(study), only=("pixel_rgb",)), Overrides(image=("coffee",), out=str(tmp_path)))
    done = tmp_path / "small"
    record = json.loads((done / "run.json").read_text("utf-8"))
    for program, kind in (("study", "kernels"), ("texture", "exemplar")):
        (tmp_path / kind).mkdir()
        changed = json.dumps({**record, "program": program, "kind": kind})
        (tmp_path / kind / "run.json").write_text(changed, "utf-8")
    done.rename(tmp_path / "moved")
    capsys.readouterr()
    refused = {
        ("nowhere",): "--resume must be a run's folder",
        (str(tmp_path / "moved"), "--steps", "3"): "takes --threads alone, got --steps",
        (str(tmp_path / "moved"), "figure2"): "takes --threads alone, got STUDY",
        (str(tmp_path / "moved"),): "must have its folder's name, 'moved', got 'small'",
        (str(tmp_path / "kernels"),): "is for studies whose finished rows are kept",
        (str(tmp_path / "exemplar"),): "give it to python -m sdslab.texture instead",
    }
    for arguments, message in refused.items():
        assert resume(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1
        assert message in error[0]


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("config", "cells", "x/../../../escaped", "a name must be lower-case letters, digits"),
        ("details", "only", 5, "details.only must be a list of names, got 5"),
        ("details", "only", "pixel_rgb", "details.only must be a list of names"),
        ("config", "colour", 1, "config: valid keys are name, title"),
    ],
)
def test_a_record_from_elsewhere_writes_nowhere_else(
    section: str,
    key: str,
    value: object,
    message: str,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "out"
    run(Selection(str(study), only=("pixel_rgb",)), Overrides(image=("coffee",), out=str(out)))
    record = json.loads((out / "small" / "run.json").read_text("utf-8"))
    record["details"]["only"] = []
    if key == "cells":
        record["config"]["cells"][0]["name"] = value
    else:
        record[section][key] = value
    (out / "small" / "run.json").write_text(json.dumps(record), "utf-8")
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert resume(monkeypatch, str(out / "small")) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_second_process_in_the_same_folder_is_refused(study: Path, tmp_path: Path):
    with (
        RunLock(tmp_path / study.stem),
        pytest.raises(UserError, match="one process at a time"),
    ):
        run(Selection(str(study)), Overrides(out=str(tmp_path)))


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
