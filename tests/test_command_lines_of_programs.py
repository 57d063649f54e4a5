"""What every program answers to a command line: mistakes in one line, help, and closed pipes."""

import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from sdslab.errors import UserError
from sdslab.shell import named_inputs
from sdslab.shell.command_line import options_of, parse
from sdslab.texture.arguments import Arguments

REPOSITORY = Path(__file__).parents[1]
PROGRAMS = ("texture", "study", "report", "train_vae")


@dataclass(frozen=True)
class Inner:
    """More."""

    steps: int | None = None
    """How many."""
    rate: Annotated[float, tyro.conf.arg(aliases=("--lr",))] = 0.5
    """How fast."""
    range: tuple[int, int] | None = None
    """From and to."""
    seeds: tuple[int, ...] = ()
    """Some."""
    way: Literal["up", "down"] = "up"
    """Which."""
    size: Literal[1, 2, 4] = 1
    """How large."""
    dry: bool = False
    """Nothing."""


@dataclass(frozen=True)
class Outer:
    """A program.

    Examples:
      one
      two
    """

    inner: tyro.conf.OmitArgPrefixes[Inner]
    mesh: Annotated[str, tyro.conf.Positional] = "apple"
    """What."""
    photo: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Like what."""


def test_a_right_command_line_is_what_it_says():
    line = "cow.obj --steps=3 --lr -1e-3 --range -1 4 --seeds 1 2 --photo a --photo b --dry"
    made = parse(Outer, "program", line.split())
    assert (made.mesh, made.photo) == ("cow.obj", ("a", "b"))
    assert made.inner == Inner(3, -1e-3, (-1, 4), (1, 2), "up", 1, True)
    assert parse(Outer, "program", ["--steps", "4"], made).inner.rate == -1e-3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--steps ten", "--steps must be a whole number, got 'ten'"),
        ("--steps=1.5", "--steps must be a whole number, got '1.5'"),
        ("--lr fast", "--lr must be a number, got 'fast'"),
        ("--steps", "--steps must be followed by a value, got none"),
        ("--steps --dry", "--steps must be followed by a value, got none"),
        ("--range 1", "--range must be followed by 2 values, got 1"),
        ("--range 1 x", "--range must be a whole number, got 'x'"),
        ("--seeds 1 b", "--seeds must be a whole number, got 'b'"),
        ("--way dwn", "--way must be one of up, down, got 'dwn'; did you mean down?"),
        ("--size 3", "--size must be one of 1, 2, 4, got '3'"),
        ("--stpes 3", "--stpes is no option; did you mean --steps?"),
        ("-steps 3", "-steps is no option; did you mean --steps?"),
        ("--zzzz", "--zzzz is no option; program --help lists them"),
        ("cow.obj in a suit", "nothing takes 'in': it follows no option"),
    ],
)
def test_mistakes_are_told_in_words(line: str, message: str):
    with pytest.raises(UserError) as caught:
        parse(Outer, "program", line.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_has_examples_in_lines_and_no_python(program: str, capsys, monkeypatch):
    name = "sdslab.train_vae" if program == "train_vae" else f"sdslab.{program}.__main__"
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert not ended.value.code
    out = capsys.readouterr().out
    assert f"\n  python -m sdslab.{program}" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "(default: )" not in out
    assert "None" not in out


def test_the_first_options_of_the_help_are_options():
    known = {name for option in options_of(Arguments) for name in option.names}
    lines = (Arguments.__doc__ or "").partition("Most runs")[2].splitlines()
    named = [line.split()[0] for line in lines if line.strip().startswith("--")]
    assert len(named) >= 8
    assert set(named) <= known


def test_doctor_s_help_is_about_doctor(capsys, monkeypatch):
    from sdslab.texture.__main__ import main

    monkeypatch.setattr(sys, "argv", ["texture", "doctor", "--help"])
    with pytest.raises(SystemExit):
        main()
    out = capsys.readouterr().out
    assert "usage: python -m sdslab.texture doctor" in out
    assert "--exemplar" not in out


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("aple", "; did you mean 'apple'?"),
        ("Torus", "; did you mean 'torus'?"),
        ("cow.ob", "; did you mean 'cow.obj'?"),
        ("COW.OBJ", "; did you mean 'cow.obj'?"),
        ("cow", "; did you mean 'cow.obj'?"),
        ("meshes/teapto.glb", "; did you mean 'meshes/teapot.glb'?"),
        ("mehses/teapot.glb", "; there is no folder 'mehses', did you mean 'meshes'?"),
        ("nowhere/at/all.obj", "; there is no folder 'nowhere/at'"),
        ("x" * 5000, ""),
        ("\0", ""),
        ("qqq", ""),
    ],
)
def test_a_mistyped_name_finds_what_is_meant(given: str, meant: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("meshes").mkdir()
    for name in ("cow.obj", "meshes/teapot.glb"):
        Path(name).write_text("")
    assert named_inputs.did_you_mean(given, named_inputs.MESHES) == meant


def test_the_names_are_those_that_are_built_in():
    from sdslab.meshes.mesh_io import READERS
    from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
    from sdslab.rendering.environment_map import PROCEDURAL

    assert set(named_inputs.MESHES) == PROCEDURAL_MESHES.keys()
    assert set(named_inputs.MESH_SUFFIXES) == READERS.keys()
    assert set(named_inputs.LIGHTS) == PROCEDURAL.keys()


def test_mistakes_import_nothing_heavy(tmp_path: Path):
    """So that they are answered at once."""
    code = (
        "import sys\nfrom sdslab.texture.__main__ import main\n"
        "for line in (['aple'], ['--exemplar', 'gravl'], ['--stps', '3'], ['--out', 'full']):\n"
        "    sys.argv = ['texture', *line]\n"
        "    try:\n        main()\n    except SystemExit as e:\n        assert e.code == 2\n"
        "assert not {'torch', 'numpy', 'numba', 'PIL'} & set(sys.modules)\n"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: ") == len(done.stderr.splitlines()) == 4


@pytest.mark.parametrize(
    "command",
    [
        "{python} -m sdslab.texture --help | head -n 1",
        "{python} -m sdslab.study | head -n 1",
        "{python} -m sdslab.study >&-",
        "{python} -m sdslab.study --help >&- 2>&-",
        "{python} -c 'from sdslab.shell.process import keep_streams; "
        "keep_streams(); import os, sys; "
        '[print("x" * 999) for _ in range(999)]; print(1, file=sys.stderr); '
        'assert os.open("/dev/null", os.O_RDONLY) > 2; open("{end}", "w")\' 2>&1 | head -n 1',
        "{python} -c 'from sdslab.shell.process import keep_streams; "
        "keep_streams(); import os, sys; "
        "print(1); print(2, file=sys.stderr); sys.stdout.flush(); "
        'assert os.open("/dev/null", os.O_RDONLY) > 2; open("{end}", "w")\' >&- 2>&- <&-',
    ],
)
def test_a_closed_pipe_is_no_failure(command: str, tmp_path: Path):
    end = tmp_path / "end"
    line = command.format(python=sys.executable, end=end)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert end.exists() == ("{end}" in command)
