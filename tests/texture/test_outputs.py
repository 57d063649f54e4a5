"""A run's folder before anything is computed."""

from pathlib import Path

import pytest

from sdslab.errors import UserError
from sdslab.texture.outputs import check_outputs_writable, clear_outputs

LEFT = ("turntable.mp4", "turntable.gif", "maps/albedo.exr", "target/mesh.glb", "report.html")
LOG = ("metrics.csv", "previews/recovery-000000.png")


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")


def test_what_an_earlier_run_left_goes(tmp_path: Path):
    fill(tmp_path, *LEFT, *LOG, "run.json", "notes.txt", "maps/notes.txt")
    clear_outputs(tmp_path, goes_on=True)
    assert all((tmp_path / name).is_file() for name in LOG)
    assert not any((tmp_path / name).exists() for name in (*LEFT, "run.json"))
    fill(tmp_path, "run.json")
    clear_outputs(tmp_path, goes_on=False)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"notes.txt"}


def test_in_a_folder_of_no_run_nothing_is_touched(tmp_path: Path):
    fill(tmp_path, *LEFT)
    clear_outputs(tmp_path, goes_on=False)
    assert all((tmp_path / name).is_file() for name in LEFT)


@pytest.mark.parametrize("name", ["obj", "maps"])
def test_a_file_where_a_folder_must_be_is_refused_at_once(name: str, tmp_path: Path):
    fill(tmp_path, name)
    with pytest.raises(UserError, match=f"--out must be a folder .*{name}"):
        check_outputs_writable(tmp_path)
