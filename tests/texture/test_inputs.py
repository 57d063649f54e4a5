"""What a run reads: each mesh file once, with the files that it names."""

from pathlib import Path

import pytest
import tyro

from sdslab.meshes import mesh_io
from sdslab.meshes.export_obj import export_obj
from sdslab.meshes.material import constant_material
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.texture.arguments import Arguments
from sdslab.texture.inputs import Inputs
from tests.texture_runs import SMALL, texture


@pytest.fixture
def textured(tmp_path: Path) -> Path:
    export_obj(PROCEDURAL_MESHES["torus"](), constant_material(8, 8), tmp_path)
    return tmp_path / "mesh.obj"


def test_a_mesh_that_is_its_own_target_is_parsed_once(
    textured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parsed, read = [], mesh_io.READERS[".obj"]
    monkeypatch.setitem(
        mesh_io.READERS, ".obj", lambda *given: (parsed.append(len(given[0])), read(*given))[1]
    )
    given = (textured, "--target", textured, "--unlit", "--steps=1", *SMALL)
    assert texture(monkeypatch, *given, f"--out={tmp_path / 'run'}") == 0
    assert parsed == [textured.stat().st_size]


def test_the_files_that_a_mesh_names_are_part_of_it(textured: Path):
    arguments = tyro.cli(Arguments, args=[str(textured)])
    before = Inputs.of(arguments)
    assert textured.with_suffix(".mtl") in before.beside
    assert list(before.meshes) == list(before.digests) == [str(textured)]
    with textured.with_suffix(".mtl").open("a") as file:
        file.write("\n# edited\n")
    assert Inputs.of(arguments).digests != before.digests
