"""What the README prints must work."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image

from sdslab.study.__main__ import Arguments as StudyArguments
from sdslab.study.experiment import rows_of
from sdslab.study.study_file import find_study, load_study
from sdslab.texture.argument_checks import check
from sdslab.texture.arguments import Arguments

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
BASH_LINES = [
    line for language, block in BLOCKS if language == "bash" for line in block.splitlines()
]
STUDY_LINES = [line for line in BASH_LINES if line.startswith("python -m sdslab.study")]
TEXTURE_LINES = [line for line in BASH_LINES if line.startswith("python -m sdslab.texture")]


def test_the_library_example_runs():
    (example,) = (block for language, block in BLOCKS if language == "python")
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["theta"].values.grad.abs().sum() > 0
    assert names["result"].gradient.shape == torch.Size([1, 4, 16, 16])


@pytest.mark.parametrize("line", STUDY_LINES)
def test_every_printed_command_is_understood(line: str):
    words = shlex.split(line, comments=True)[3:]
    arguments = tyro.cli(StudyArguments, args=words)
    if not arguments.selection.study:
        return
    path, preset = find_study(arguments.selection.study), arguments.selection.preset
    study = load_study(path, preset)
    assert set(arguments.selection.only) <= {row.name for row in rows_of(study)}


@pytest.mark.parametrize("line", TEXTURE_LINES)
def test_every_printed_texture_command_is_understood(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = shlex.split(line, comments=True)[3:]
    monkeypatch.chdir(tmp_path)
    for name in (word for word in words if re.fullmatch(r"[\w/]+\.\w+", word)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()  # the commands name the reader's own files
        if name.endswith((".jpg", ".png")):
            Image.new("RGB", (64, 64)).save(tmp_path / name)
    if words != ["doctor"]:  # which has tests of its own
        check(tyro.cli(Arguments, args=words))


@pytest.mark.parametrize("name", ["figure2", "renderer"])
def test_the_tables_are_the_committed_figures(name: str):
    tables = [
        [line for line in path.read_text("utf-8").splitlines() if line.startswith("| ")]
        for path in (README, README.parent / "figures" / f"{name}.md")
    ]
    printed, made = tables
    assert made
    assert "\n".join(made) in "\n".join(printed)


def test_every_named_file_exists():
    root = README.parent
    for name in re.findall(r"`((?:sdslab|studies|figures)/[\w./]*)`", README.read_text("utf-8")):
        assert (root / name).exists(), name
    architecture = (root / "docs" / "architecture.md").read_text("utf-8")
    packages = "|".join(path.name for path in (root / "sdslab").iterdir() if path.is_dir())
    named = re.findall(rf"`((?:{packages})/[\w./]*)`", architecture)
    assert len(named) > 20
    for name in named:
        assert (root / "sdslab" / name).exists(), name


def test_files_named_without_their_folder_exist_there():
    """`pixel.py` in the row of a folder is in that folder; in the architecture it is somewhere."""
    root = README.parent
    rows = re.findall(r"^\| (`sdslab/\w+/`) \| (.*) \|$", README.read_text("utf-8"), re.M)
    named = [(folder.strip("`"), name) for folder, text in rows for name in _files_in(text)]
    assert len(named) > 8
    assert [(folder, name) for folder, name in named if not (root / folder / name).exists()] == []
    known = {path.name for path in (root / "sdslab").rglob("*.py")}
    for path in (root / "docs").glob("*.md"):
        assert set(_files_in(path.read_text("utf-8"))) <= known, path


def _files_in(text: str) -> list[str]:
    return re.findall(r"`(\w+\.py)`", text)
