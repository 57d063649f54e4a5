import dataclasses
import math

import pytest
import torch

from sdslab.study.reconstruct import CellResult, Readout
from sdslab.study.results import Finished, markdown_of, notes_of, rows_of, table_of
from sdslab.study.specification import Cell, Optimization, Settings, Study

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


def finished(image: str, theta_db: float, clamped_db: float, decoded_db: float) -> Finished:
    picture = torch.zeros(1, 3, 2, 2)
    readouts = {
        "theta": Readout(picture, theta_db, clamped_db),
        "decoded": Readout(picture, decoded_db, decoded_db),
    }
    result = CellResult(readouts, 1e-6, 1.0, 25.0, 10, 2.0, [])
    return Finished(CELL, image, 0, result)


def test_the_table_s_means_spreads_and_differences():
    table = table_of(STUDY, rows_of([finished("a", 7, 9, 24), finished("b", 9, 12, 26)]))
    theta, decoded = table.to_dict("records")
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
    }
    assert (decoded["read-out"], decoded["PSNR, dB"]) == ("dec(enc(θ))", "25.00 ± 1.41")
    assert (decoded["paper"], decoded["difference"]) == ("", "")


def test_one_run_has_no_spread_and_a_perfect_one_is_infinite():
    (theta, _) = table_of(STUDY, rows_of([finished("a", 7, 7, 7)])).to_dict("records")
    assert theta["PSNR, dB"] == "7.00"
    (theta, _) = table_of(STUDY, rows_of([finished("a", math.inf, 7, 7)])).to_dict("records")
    assert theta["PSNR, dB"] == "inf"
    assert theta["difference"] == ""


def test_markdown_has_a_line_per_read_out_and_the_notes():
    table = table_of(STUDY, rows_of([finished("a", 7, 9, 24)]))
    page = markdown_of(STUDY, table, ["note one"])
    lines = page.splitlines()
    assert lines[0] == "# Title"
    assert lines[2].startswith("| diffusion | θ | read-out | PSNR, dB |")
    assert lines[4].startswith("| latent | RGB pixels | θ | 7.00 | 9.00 |")
    assert "note one" in page


def test_float32_s_floor_is_explained_only_where_it_shows():
    pixel = dataclasses.replace(CELL, diffusion="pixel")
    of_pixels = dataclasses.replace(STUDY, cells=(pixel,))
    in_float64 = dataclasses.replace(
        of_pixels, settings=dataclasses.replace(STUDY.settings, dtype="float64")
    )
    mentions = ["floor" in "".join(notes_of(s, "cpu")) for s in (of_pixels, in_float64, STUDY)]
    assert mentions == [True, False, False]


def test_a_read_out_is_measured_as_it_is_and_clamped():
    original = torch.ones(1, 3, 4, 4)
    readout = Readout.of(torch.full_like(original, 1.5), original)
    assert readout.psnr_db == pytest.approx(10 * math.log10(4))
    assert readout.psnr_clamped_db == math.inf
