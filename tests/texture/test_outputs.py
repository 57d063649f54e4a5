"""A run's folder before anything is computed: whose it is, and what in it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sdslab.errors import UserError
from sdslab.runs.schema import read_run
from sdslab.texture.run_folder import OUTPUTS, own_outputs
from tests.texture_runs import SMALL, texture

RUN = ("torus", "--target", "coffee", "--unlit", "--steps=2", *SMALL, "--turntable=2", "--exr")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, links as what they lead to."""
    return {
        str(path.relative_to(folder)): (
            os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        )
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert texture(patch, *RUN, "--preview-every=1", "--out=run") == 0
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run, in the present folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(finished, tmp_path / "run"))


def refused(monkeypatch, capsys, *arguments: str | Path) -> str:
    """The one line that a command ends with, which changes nothing below the present folder."""
    before = contents(Path())
    capsys.readouterr()
    assert texture(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert contents(Path()) == before
    return err


def test_all_that_a_run_writes_is_known_and_listed(finished: Path):
    """An output that is missing here could never be told from a user's own file."""
    written = {path for path in finished.rglob("*") if path.is_file()}
    known = {path for name in OUTPUTS for path in finished.glob(name)}
    rest = {path.relative_to(finished).parts[0] for path in written - known}
    assert rest <= {"run.json", "tensorboard"}
    listed = read_run(finished / "run.json")["files"]
    assert {finished / name for name in listed} == known - {finished / "report.html"}


def test_a_fresh_start_replaces_our_files_and_leaves_the_users(run: Path, monkeypatch):
    own = ("notes.txt", "maps/rust.png", "backup/mesh.glb", "obj/scene.blend")
    for name in own:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(f"my {name}")
    before = (run / "run.json").read_bytes()
    assert texture(monkeypatch, *RUN, "--seed=1", "--out=run", "--fresh") == 0
    assert (run / "run.json").read_bytes() != before
    assert all((run / name).read_text() == f"my {name}" for name in own)
    assert not list((run / "previews").iterdir())  # --preview-every=0 this time


@pytest.mark.parametrize("name", ["mesh.glb", "maps/albedo.png", "metrics.csv", "report.html"])
@pytest.mark.parametrize("how", [(), ("--fresh",)], ids=["another run", "fresh"])
def test_a_users_file_in_place_of_an_output_is_kept(
    name: str, how: tuple[str, ...], run: Path, monkeypatch, capsys
):
    (run / name).write_text("edited")
    error = refused(monkeypatch, capsys, *RUN, "--out=run", *how)
    assert f"'run/{name}' must be a file that this program wrote" in error


def test_a_file_that_the_run_does_not_list_is_kept(run: Path, monkeypatch, capsys):
    (run / "turntable.gif").write_text("mine")
    error = refused(monkeypatch, capsys, *RUN, "--out=run", "--fresh")
    assert "'run/turntable.gif' must be" in error
    assert "its record does not list" in error


@pytest.mark.parametrize("name", ["mesh.glb", "index.html", "photo.jpg", "run.json", "a/b.txt"])
def test_a_folder_with_other_files_is_not_written_into(
    name: str, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("od", name).parent.mkdir(parents=True)
    Path("od", name).write_text('{"name": "my run"}')
    for how in ((), ("--fresh",)):
        error = refused(monkeypatch, capsys, *RUN, "--out=od", *how)
        assert "--out must be a folder that is empty or holds a run of this program" in error


def test_files_of_the_system_do_not_count(tmp_path: Path):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", ".gitkeep", "._mesh.glb"):
        (tmp_path / name).write_text("")
    assert own_outputs(tmp_path, {}) == []


def test_a_study_s_folder_is_no_texture_s(tmp_path: Path):
    record = {"schema": 1, "program": "study", "config": {}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"empty or holds a run of this program.*run\.json"):
        own_outputs(tmp_path, {})


def test_the_mesh_in_the_present_folder_is_not_written_over(
    finished: Path, tmp_path: Path, monkeypatch, capsys
):
    shutil.copy(finished / "mesh.glb", tmp_path)
    monkeypatch.chdir(tmp_path)
    error = refused(monkeypatch, capsys, "mesh.glb", *RUN[1:], "--out=.")
    assert "--out must be a folder that no input lies in, got '.', which holds MESH" in error


@pytest.mark.usefixtures("run")
def test_inputs_inside_the_run_s_folder_are_refused(monkeypatch, capsys):
    Path("linked").symlink_to("run")
    Path("mesh.glb").symlink_to("run/mesh.glb")
    for inputs in (
        ("run/mesh.glb", *RUN[1:]),
        ("linked/../run/mesh.glb", *RUN[1:]),
        ("mesh.glb", *RUN[1:]),
        (*RUN, "--init=run/maps"),
        (*RUN, "--init=linked/mesh.glb"),
        (*RUN, "--init=run"),
        ("torus", "--exemplar=a=run/front.png", *SMALL),
        ("torus", "--target=linked/maps", *SMALL),
    ):
        for out in ("run", "linked"):
            error = refused(monkeypatch, capsys, *inputs, f"--out={out}", "--fresh")
            assert "--out must be a folder that no input lies in" in error


def test_an_output_that_is_also_an_input_by_a_hard_link_is_kept(run: Path, monkeypatch, capsys):
    os.link(run / "mesh.glb", "cow.glb")
    error = refused(monkeypatch, capsys, "cow.glb", *RUN[1:], "--out=run", "--fresh")
    assert "got MESH 'cow.glb' itself" in error


def test_links_that_lead_nowhere_and_files_are_no_folders(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("gone").symlink_to("nowhere")
    Path("file").write_text("mine")
    for out in ("gone", "gone/run", "file", "file/run"):
        error = refused(monkeypatch, capsys, *RUN, f"--out={out}")
        assert "--out must be a folder that can be written" in error
    assert not Path("nowhere").exists()


def test_a_run_that_was_killed_owns_what_it_writes(run: Path, monkeypatch):
    """It had no time to list its files."""
    record = json.loads((run / "run.json").read_text())
    del record["files"]
    (run / "run.json").write_text(json.dumps({**record, "outcome": "running"}))
    Image.new("RGB", (4, 4)).save(run / "front.png")
    (run / "turntable.gif").write_text("half")
    assert texture(monkeypatch, *RUN, "--out=run") == 0
    assert not (run / "turntable.gif").exists()


@pytest.mark.parametrize("name", ["obj", "maps"])
def test_a_file_where_a_folder_must_be_is_refused_at_once(name: str, tmp_path: Path):
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=f"--out must be a folder .*{name}"):
        own_outputs(tmp_path, {})


def test_what_a_killed_process_had_not_yet_renamed_is_ours_and_hidden_files_of_the_users_are_not(
    tmp_path: Path,
):
    from sdslab.texture.run_folder import _half_written

    (tmp_path / "maps").mkdir()
    for name in (".albedo.ab12_x9q.png", ".mine.png", "albedo.png", ".albedo.short.png"):
        (tmp_path / "maps" / name).touch()
    assert [path.name for path in _half_written(tmp_path)] == [".albedo.ab12_x9q.png"]
