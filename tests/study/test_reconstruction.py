"""The tables of Figure 2's study, and what a cell's numbers depend on."""

import dataclasses
import math
from typing import Any

from sdslab.runs.table import Page
from sdslab.study.experiment import Result
from sdslab.study.reconstruct import Cell, Optimization
from sdslab.study.reconstruction import (
    COLUMNS,
    Settings,
    Study,
    cell_key,
    notes_of,
    rows_of_cell,
    table_of,
)

CELL = Cell(
    name="latent_rgb",
    label="RGB pixels",
    diffusion="latent",
    parameterization="pixel",
    initialization="noise",
    optimization=Optimization(steps=10),
    paper_psnr_db={"theta": 8.5},
)
STUDY = Study("s", "Title", "default", Settings(("a", "b"), (0,), 64), (CELL,))


def finished(
    image: str, theta_db: float, clamped_db: float, decoded_db: float
) -> list[dict[str, Any]]:
    numbers = {
        "psnr": {"theta": [theta_db, clamped_db], "decoded": [decoded_db, decoded_db]},
        "latent_mse": 1e-6,
        "latent_mse_start": 1.0,
        "vae_ceiling_db": 25.0,
        "steps": 10,
        "seconds": 2.0,
    }
    return rows_of_cell(CELL, image, 0, Result({}, numbers))


def lines_of(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [dict(zip(COLUMNS, line, strict=True)) for line in table_of(STUDY, rows).rows]


def test_the_table_s_means_spreads_and_differences():
    theta, decoded = lines_of([*finished("a", 7, 9, 24), *finished("b", 9, 12, 26)])
    assert theta == {
        "diffusion": "latent",
        "θ": "RGB pixels",
        "read-out": "θ",
        "PSNR, dB": "8.00 ± 1.41",
        "clamped": "10.50 ± 2.12",
        "VAE ceiling": "25.00",
        "latent MSE": "1.0e-06",
        "paper": "8.50",
        "difference": "-0.50",
        "steps": "10",
        "seconds": "2.0",
        "--only": "latent_rgb",
    }
    assert (decoded["read-out"], decoded["PSNR, dB"]) == ("dec(enc(θ))", "25.00 ± 1.41")
    assert (decoded["paper"], decoded["difference"]) == ("", "")


def test_one_run_has_no_spread_and_a_perfect_one_is_infinite():
    (theta, _) = lines_of(finished("a", 7, 7, 7))
    assert theta["PSNR, dB"] == "7.00"
    (theta, _) = lines_of(finished("a", math.inf, 7, 7))
    assert theta["PSNR, dB"] == "inf"
    assert theta["difference"] == ""


def test_markdown_has_a_line_per_read_out_and_the_notes():
    table = table_of(STUDY, finished("a", 7, 9, 24))
    page = Page(STUDY.title, [table, "of x*"]).markdown()
    lines = page.splitlines()
    assert lines[0] == "# Title"
    assert lines[2].startswith("| diffusion | θ | read-out | PSNR, dB |")
    assert lines[4].startswith("| latent | RGB pixels | θ | 7.00 | 9.00 |")
    assert lines[-1] == r"of x\*"


def test_float32_s_floor_is_explained_only_where_it_shows():
    pixel = dataclasses.replace(CELL, diffusion="pixel")
    of_pixels = dataclasses.replace(STUDY, cells=(pixel,))
    in_float64 = dataclasses.replace(
        of_pixels, settings=dataclasses.replace(STUDY.settings, dtype="float64")
    )
    mentions = ["floor" in "".join(notes_of(s, "cpu")) for s in (of_pixels, in_float64, STUDY)]
    assert mentions == [True, False, False]


def test_the_key_depends_on_every_number_and_on_no_label():
    key = cell_key(CELL, seed=0, image="x")
    assert (
        cell_key(dataclasses.replace(CELL, label="other", pictured=False), seed=0, image="x") == key
    )
    changed = [
        cell_key(CELL, seed=1, image="x"),
        cell_key(CELL, seed=0, image="y"),
        cell_key(dataclasses.replace(CELL, weighting="x0_castex"), seed=0, image="x"),
        cell_key(dataclasses.replace(CELL, optimization=Optimization(4)), seed=0, image="x"),
        cell_key(dataclasses.replace(CELL, width=3), seed=0, image="x"),
    ]
    assert len({key, *changed}) == 6
