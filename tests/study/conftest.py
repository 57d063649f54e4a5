from pathlib import Path

import pytest
from matplotlib.figure import Figure

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


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Printed tables have all their columns; `test_printed_table.py` narrows it."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture
def study(tmp_path: Path, tiny_vae_folder: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(STUDY.replace("size = 16", f"size = 64\nvae = '{tiny_vae_folder}'"))
    return path


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are empty files: drawing takes longer than these studies."""
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **__: Path(path).touch())


def cells_of(out: Path) -> dict[str, float]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "small" / "cells").iterdir()}
