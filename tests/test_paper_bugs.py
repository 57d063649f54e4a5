"""What the paper's public code gets wrong, one test of ours for each."""

import dataclasses
import importlib
import json
import pkgutil
from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image

import sdslab
from sdslab.denoisers.prompts import FRONT, view_of
from sdslab.errors import UserError
from sdslab.kernels import sr_condition
from sdslab.meshes.export_glb import export_glb
from sdslab.meshes.material import constant_material, dilate_seams
from sdslab.meshes.mesh_io import load_mesh
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.meshes.surface_frame import vertex_normals
from sdslab.pictures.image_io import load_image
from sdslab.rendering.cameras import Cameras, CameraSampler
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.lighting import Environment, Lighting
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.scene import SceneSampler

TETRAHEDRON = (
    torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]),
    torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]]),
)
HALF_TURN = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))


def seen_from(azimuth_deg: float) -> Cameras:
    return Cameras.orbit(*(torch.tensor([x]) for x in (azimuth_deg, 15.0, 5.0, 30.0)))


def test_1_every_module_imports():
    """src/train.py is an IndentationError."""
    names = [
        module.name
        for module in pkgutil.walk_packages(sdslab.__path__, "sdslab.")
        # Importing a program runs it; the GPU's bodies need Triton and nvdiffrast.
        if not module.name.endswith("__main__")
        and not module.name.rpartition(".")[2].startswith(("triton_", "nvdiffrast"))
    ]
    assert len(names) > 80
    for name in names:
        importlib.import_module(name)


def test_2_the_suffix_names_the_objects_side():
    """The world's azimuth is used, though the mesh is turned by a random angle."""
    eye = seen_from(90).eye
    assert view_of(eye).tolist() == [FRONT]


def test_3_normals_turn_with_the_mesh():
    """Stage II shades a turned mesh with the normals that it had before."""
    mesh = PROCEDURAL_MESHES["apple"]()
    turned = dataclasses.replace(
        mesh, positions=mesh.positions @ HALF_TURN.double(), normals=mesh.normals @ HALF_TURN
    )
    front = Renderer(turned, CpuBackend()).see(seen_from(90), 32).normal
    back = Renderer(mesh, CpuBackend()).see(seen_from(270), 32).normal
    assert len(front) == len(back)
    torch.testing.assert_close(front, back @ HALF_TURN, atol=1e-3, rtol=0)


def test_4_normals_have_unit_length_and_tangents_a_handedness():
    """Averages of face normals are .33 long on a tetrahedron; tangents run together at seams."""
    torch.testing.assert_close(vertex_normals(*TETRAHEDRON).norm(dim=1), torch.ones(4))
    frame = PROCEDURAL_MESHES["torus"]().tangents
    torch.testing.assert_close(frame[:, :3].norm(dim=1), torch.ones(len(frame)))
    assert set(frame[:, 3].tolist()) <= {-1.0, 1.0}


def test_5_both_pictures_of_a_step_have_one_background():
    """The SR condition and the optimised picture draw a background each."""
    renderer = Renderer(PROCEDURAL_MESHES["torus"](), CpuBackend())
    scenes = SceneSampler(CameraSampler(), None, "random", 32, seed=1)
    scene = scenes.sample(3, 2, renderer.extreme_points)
    surface = renderer.see(scene.cameras, 32)
    pictures = [
        renderer.picture(surface, constant_material(4, 4, albedo=color), None, scene.background)
        for color in ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    ]
    behind = (surface.coverage() == 0).expand(-1, 3, -1, -1)
    assert pictures[0][behind].equal(pictures[1][behind])
    assert not pictures[0][~behind].equal(pictures[1][~behind])


def test_6_the_condition_can_be_antialiased():
    """Nearest-neighbour 512 → 64 turns a fine checkerboard into whatever it happens to hit."""
    checker = (torch.arange(512)[:, None] + torch.arange(512)).remainder(2).float()
    picture = checker.expand(1, 3, 512, 512)
    shown = {
        mode: sr_condition(picture, None, None, mode=mode, size=256, low_size=64)
        for mode in ("castex", "pipeline")
    }
    assert shown["castex"].abs().min() == 1  # all black or all white
    assert shown["pipeline"][..., 8:-8, 8:-8].abs().max() < 0.05  # grey


def test_7_a_prompt_is_no_file_name():
    """The cache's file is named by the prompt, keyed by nothing else, and a pickle."""
    from sdslab.files.disk_cache import content_hash

    texts = ("a/b", "../../x", "cow " * 2500)
    keys = {content_hash(model, text) for model in ("one", "another") for text in texts}
    assert len(keys) == 6
    assert all(len(key) == 64 and key.isalnum() for key in keys)


def test_8_meshes_keep_their_texture_coordinates_scale_and_place(tmp_path: Path):
    """Triangle OBJ files only, the artist's coordinates dropped, exported within [−1, 1]."""
    quad = tmp_path / "quad.obj"
    quad.write_text(
        "v 100 0 0\nv 104 0 0\nv 104 3 0\nv 100 3 0\n"
        "vt .1 .1\nvt .9 .1\nvt .9 .8\nvt .1 .8\nf 1/1 2/2 3/3 4/4\n"
    )
    mesh = load_mesh(quad)
    export_glb(mesh, constant_material(4, 4), tmp_path / "quad.glb", extras={})
    again = load_mesh(tmp_path / "quad.glb")
    for loaded in (mesh, again):
        assert loaded.positions.amin(0).tolist() == [100, 0, 0]
        assert loaded.positions.amax(0).tolist() == [104, 3, 0]
        torch.testing.assert_close(loaded.uv.amin(0), torch.tensor([0.1, 0.1]))
        torch.testing.assert_close(loaded.uv.amax(0), torch.tensor([0.9, 0.8]))


def test_8_the_configuration_is_written_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is written only where a run succeeds."""
    from sdslab.texture import stage
    from sdslab.texture.arguments import Arguments
    from sdslab.texture.runner import run

    class Stopped(Exception):
        pass

    def stop(*_: object, **__: object) -> None:
        raise Stopped

    monkeypatch.setattr(stage, "optimize_material", stop)
    given = tyro.cli(
        Arguments,
        args=["torus", "--target=coffee", "--texture-size=16", "--unlit", "--device=cpu",
              f"--out={tmp_path / 'run'}"],
    )  # fmt: skip
    with pytest.raises(Stopped):
        run(given)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["subject"]["target"] == "coffee"


def test_9_seams_are_dilated_and_albedo_is_srgb():
    """Grey bleeds in at seams; a linear albedo is read as sRGB by viewers."""
    maps = torch.zeros(8, 8, 8)
    covered = torch.zeros(8, 8, dtype=torch.bool)
    covered[2:5, 2:5] = True
    maps[covered] = 0.7
    assert dilate_seams(maps, covered).eq(0.7).all()
    # Lit by white from everywhere, a rough dielectric has the colour that is stored for it.
    renderer = Renderer(PROCEDURAL_MESHES["sphere"](), CpuBackend())
    white = Environment.from_radiance(torch.ones(8, 16, 3), resolution=16)
    surface = renderer.see(seen_from(90), 32)
    grey = constant_material(4, 4, albedo=(0.5, 0.5, 0.5), roughness=1.0)
    picture = renderer.picture(surface, grey, Lighting.fixed(white, 1), torch.zeros(1, 3, 32, 32))
    middle = picture[0, :, 16, 16]
    torch.testing.assert_close(middle, torch.full((3,), 0.5), atol=0.05, rtol=0)


def test_10_an_unreadable_picture_is_an_error(tmp_path: Path):
    """Metrics put a built-in picture of a carrot in its place."""
    file = tmp_path / "broken.png"
    Image.new("RGB", (8, 8)).save(file)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match=r"broken\.png"):
        load_image(str(file), 8)
