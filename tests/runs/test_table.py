"""Tables fit the terminal: what a row is of can always be read."""

import pytest

from sdslab.runs.table import Page, Table, csv_of
from sdslab.study.reconstruction import table_of
from sdslab.study.study_file import find_study, load_study

WIDTHS = (40, 60, 80, 118, 200)


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def test_the_study_s_table_keeps_its_labels(width: int, capsys: pytest.CaptureFixture[str]):
    study = load_study(find_study("figure2"), None)
    numbers = {"psnr_db": 147.26, "psnr_clamped_db": 9.93, "latent_mse": 4.8e-6, "steps": 300}
    rows = [
        {"cell": cell.name, "readout": readout, **numbers, "image": "coffee", "seed": seed,
         "vae_ceiling_db": 22.16, "paper_psnr_db": 148.02, "seconds": 44.2}
        for cell in study.cells
        for readout in ("theta", "decoded")
        for seed in (0, 1)
    ]  # fmt: skip
    Page("Figure 2", [table_of(study, rows)]).print("figures/figure2.md")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    if width >= 60:
        for cell in study.cells:
            assert sum(cell.label in line and "147.26" in line for line in lines) >= 2, cell.label
    shown = "\n".join(lines)
    # Where there are 40 columns its last bracket is on the next line.
    assert ("dec(enc(θ))" if width >= 60 else "dec(enc(θ") in shown
    assert ("seconds" in lines[2] + lines[3]) == (width == 200)
    assert ("no room for --only, seconds" in shown.replace("\n", " ")) == (width < 200)


PAGE = Page(
    "Speeds",
    [
        "CPU.",
        Table(
            ["operation", "size", "ours, ms", "reference", "reference, ms", "ratio"],
            [
                ["nearest face of every pixel", "8 × 256²", "11.0 (10.7–11.5)", "embree",
                 "45.5 (45.2–45.9)", "4.1×"],
                ["look-up and its adjoint", "8 × 256²", "27.2 (25.2–30.3)", "plain torch",
                 "298 (289–303)", "11.0×"],
            ],
        ),
    ],
)  # fmt: skip
MARKDOWN = """# Speeds

CPU.

| operation | size | ours, ms | reference | reference, ms | ratio |
| --- | --- | --- | --- | --- | --- |
| nearest face of every pixel | 8 × 256² | 11.0 (10.7–11.5) | embree | 45.5 (45.2–45.9) | 4.1× |
| look-up and its adjoint | 8 × 256² | 27.2 (25.2–30.3) | plain torch | 298 (289–303) | 11.0× |
"""


def test_a_measured_table_keeps_its_labels(width: int, capsys: pytest.CaptureFixture[str]):
    PAGE.print("figures/speeds.md")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert "# Speeds\n\nCPU.\n" in out
    assert ("| ratio |" in out) == (width >= 118)
    if width >= 80:
        for label in ("nearest face of every pixel", "look-up and its adjoint", "embree"):
            assert any(label in line for line in out.splitlines())
    assert ("figures/speeds.md has all columns" in out.replace("\n", " ")) == (width < 118)


def test_a_page_for_a_file_is_the_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("COLUMNS", raising=False)
    PAGE.print("figures/speeds.md")
    assert capsys.readouterr().out == MARKDOWN == PAGE.markdown()


def test_csv_has_a_column_for_each_key_and_six_digits():
    rows = [{"a": 1.23456789, "b": None}, {"a": 2.0, "c": "x"}]
    assert csv_of(rows) == "a,b,c\n1.23457,,\n2,,x\n"
