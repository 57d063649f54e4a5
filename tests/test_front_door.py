"""What ``import sdslab`` gives, and what it costs."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import sdslab
from sdslab.errors import UserError
from sdslab.texture import runner as module
from sdslab.texture.arguments import Arguments

STUB = Path(sdslab.__file__).with_suffix(".pyi")


def test_importing_it_imports_nothing_heavy():
    program = "import sys, sdslab; print(*({'torch', 'numpy', 'numba'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.split() == []


def test_every_name_is_there_and_stands_where_the_stub_says():
    imports = [
        node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ImportFrom)
    ]
    assert sorted(name.name for node in imports for name in node.names) == dir(sdslab)
    for node in imports:
        for name in node.names:
            home = importlib.import_module(f"sdslab.{node.module}")
            assert getattr(sdslab, name.name) is getattr(home, name.name)
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(sdslab, "no_such_name")  # noqa: B009


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Arguments]:
    """The arguments of the runs, which do not happen."""
    runs: list[Arguments] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sdslab.texture.runner.run", runs.append)
    return runs


def test_a_mesh_is_textured_with_the_options_of_the_command_line(ran: list[Arguments]):
    folder = sdslab.texture_mesh(
        "sphere",
        exemplar=("gravel", "a=grass"),
        texture_size=64,
        light_intensity=(1, 1.5),
        frozen="roughness",
        unlit=False,
        exr=True,
        init=None,
        out=Path("some where"),
    )
    assert folder == Path("some where")
    (arguments,) = ran
    assert arguments.subject.mesh == "sphere"
    assert arguments.subject.exemplar == ("gravel", "a=grass")
    assert arguments.optimization.texture_size == 64
    assert arguments.optimization.frozen == ("roughness",)
    assert arguments.rendering.light_intensity == (1, 1.5)
    assert not arguments.rendering.unlit
    assert arguments.output.exr
    assert sdslab.texture_mesh(Path("-x.obj").with_name("sphere")) == Path("runs/sphere-gravel")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stpes": 3}, "did you mean --steps"),
        ({"preset": "fst"}, "must be one of fast, castex, quality"),
        ({"timesteps": (1,)}, "2 values, got 1"),
        ({"texture_size": 100}, "power of two"),
        ({"target": "brick", "prompt": "a cow"}, "give one"),
    ],
    ids=["unknown", "choice", "too few", "range", "together"],
)
def test_its_mistakes_are_those_of_the_command_line(
    options: dict, message: str, ran: list[Arguments]
):
    with pytest.raises(UserError, match=message):
        module.texture_mesh("sphere", **options)
    assert not ran
    assert not list(Path().iterdir())
