"""Every program writes only where its own files are: what else lies there stays as it is."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from sdslab.errors import UserError
from sdslab.runs.folder import check_inputs_apart
from sdslab.runs.record import run_record, write_json


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(
    main: Callable[[], None], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks that a command line ends with exit code 2 and that no file has changed."""
    before = contents(Path())
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert contents(Path()) == before


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runs() -> list[str]:
    for name in ("one", "two"):
        record = run_record({}, torch.device("cpu"), program="study", kind="exemplar")
        write_json(Path(name, "run.json"), record)
    return ["one", "two"]


@pytest.mark.parametrize(
    ("foreign", "options"),
    [
        ("index.html", []),
        ("all.html", ["--out=all.html"]),
        ("table.csv", ["--csv=table.csv"]),
        ("one/report.html", []),
    ],
)
def test_a_report_replaces_only_pages_and_tables_of_its_own(
    foreign: str, options: list[str], runs: list[str], monkeypatch, capsys
):
    from sdslab.report.__main__ import main

    Path(foreign).write_text("<title>mine</title>\nrun,program\n")
    refused(main, [*runs, *options], monkeypatch)
    assert Path(foreign).name in capsys.readouterr().err
    Path(foreign).unlink()
    for _ in range(2):  # its own are made anew
        monkeypatch.setattr(sys, "argv", ["report", *runs, *options])
        main()
    assert Path(foreign).stat().st_size


def test_a_training_writes_over_no_model_and_into_no_folder_of_photographs(monkeypatch, capsys):
    from sdslab.train_vae import main

    Path("photos").mkdir()
    Image.new("RGB", (300, 300)).save("photos/one.png")
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    refused(main, ["photos", "--out=model"], monkeypatch)
    assert "'model' with 'config.json'" in capsys.readouterr().err
    curve = Path(__file__).parents[2] / "sdslab" / "shipped_vae" / "training_curve.csv"
    shutil.copy(curve, "photos")  # as if trained here before
    refused(main, ["photos", "--out=photos"], monkeypatch)
    assert "no input lies in" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["csv", "json", "md", "png"])
def test_a_study_replaces_no_table_or_picture_that_it_did_not_write(
    suffix: str, monkeypatch, capsys
):
    from sdslab.study.__main__ import main

    record = run_record({}, torch.device("cpu"), program="study", kind="reconstruction")
    write_json(Path("out/figure2/run.json"), record | {"outcome": "finished"})
    Path("out", f"figure2.{suffix}").write_text("mine")
    refused(main, ["figure2", "--out=out"], monkeypatch)
    assert f"figure2.{suffix}" in capsys.readouterr().err


def test_an_input_is_found_through_a_link():
    Path("out").mkdir()
    Path("out", "mesh.obj").touch()
    Path("link.obj").symlink_to("out/mesh.obj")
    with pytest.raises(UserError, match="holds MESH"):
        check_inputs_apart(Path("out"), {"MESH": "link.obj"}, "--out")
