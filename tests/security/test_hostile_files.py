"""Files made to do harm are refused or bounded, and nothing outside the run's folder is touched."""

import gzip
import json
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sdslab.errors import UserError
from sdslab.meshes.material import load_maps
from sdslab.meshes.mesh_io import load_mesh
from sdslab.pictures.image_io import load_image
from sdslab.rendering.environment_map import load_environment
from tests.texture_runs import SMALL, texture
from tests.tiny_pipelines import save_deepfloyd_one, save_deepfloyd_two

RUN = ("--target", "coffee", "--unlit", "--steps=1", *SMALL)
SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nf 1/1 2/2 3/3 4/4\n"


class Bomb:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return Path.mkdir, (Path("opened"),)


class Doors:
    """Which files this process opened or made, and which addresses it asked for."""

    def __init__(self) -> None:
        self.watching = False
        self.paths: list[Path] = []
        self.addresses: list[object] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self.watching:
            return
        if event in ("open", "os.rename", "os.mkdir") and isinstance(arguments[0], str | bytes):
            name = arguments[0]
            self.paths.append(Path(name.decode() if isinstance(name, bytes) else name).resolve())
        if event in ("socket.connect", "socket.getaddrinfo"):
            self.addresses.append(arguments[1:])


ALL_DOORS = Doors()  # a hook cannot be taken away again


@pytest.fixture
def doors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The working folder is ``home``, beside which there is a ``secret.png``."""
    (tmp_path / "home").mkdir()
    (tmp_path / "secret.png").write_bytes(png(4, 4))
    (tmp_path / "secret.mtl").write_text("newmtl m\nKd 1 0 0\n")
    (tmp_path / "secret.bin").write_bytes(bytes(100))
    monkeypatch.chdir(tmp_path / "home")
    ALL_DOORS.paths, ALL_DOORS.addresses, ALL_DOORS.watching = [], [], True
    yield ALL_DOORS
    ALL_DOORS.watching = False
    home = tmp_path / "home"
    strange = [path for path in ALL_DOORS.paths if path.parent == tmp_path and path != home]
    assert strange == []
    assert ALL_DOORS.addresses == []
    assert {path.name for path in tmp_path.iterdir()} == {
        "home", "secret.png", "secret.mtl", "secret.bin",
    }  # fmt: skip


def png(width: int, height: int, pixels: bytes | None = None) -> bytes:
    """A grey picture that claims a size; without ``pixels``, of zeros."""
    if pixels is None:
        pixels = (b"\0" * (width + 1)) * height
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in (
        (b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(pixels)),
        (b"IEND", b""),
    ):
        check = struct.pack(">I", zlib.crc32(name + body))
        content += struct.pack(">I", len(body)) + name + body + check
    return content


@pytest.mark.parametrize("claim", [(60_000, 60_000), (14_000, 14_000), (2**31 - 1, 1)])
@pytest.mark.parametrize(
    "read",
    [
        lambda path: load_image(path, 64),
        load_environment,
        lambda path: load_maps(path.parent),
    ],
    ids=["image", "light", "maps"],
)
def test_pictures_that_claim_to_be_huge_are_not_decoded(
    read: Callable[[Path], object], claim: tuple[int, int], tmp_path: Path
):
    path = tmp_path / "albedo.png"
    path.write_bytes(png(*claim, pixels=b"\0" * 1000))
    for name in ("metallic_roughness.png", "normal.png"):
        shutil.copyfile(path, tmp_path / name)
    with pytest.raises(UserError, match=r"pixels|exceeds limit|decompression bomb"):
        read(path)


def test_arrays_that_claim_to_be_huge_are_not_made(tmp_path: Path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**9, 3)}
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(UserError, match="readable picture"):
        load_image(tmp_path / "a.npy", 64)


REFERENCES = [
    "../secret.png", "%2e%2e/secret.png", "..\\secret.png", "sub/../../secret.png", "link.png",
    "linked/secret.png", "file:../secret.png", "file:///etc/hostname", "/etc/hostname",
    "http://127.0.0.1:9/secret.png", "//127.0.0.1/secret.png", "\\\\127.0.0.1\\secret.png",
]  # fmt: skip


@pytest.mark.parametrize("reference", REFERENCES)
def test_an_obj_names_nothing_outside_its_folder(reference: str, doors: Doors):
    Path("link.png").symlink_to("../secret.png")
    Path("linked").symlink_to("..")
    Path("mesh.mtl").write_text(f"newmtl m\nmap_Kd {reference}\nmap_Bump {reference}\n")
    other = reference.replace(".png", ".mtl")
    Path("mesh.obj").write_text(f"mtllib mesh.mtl\nmtllib {other}\nusemtl m\n{SQUARE}")
    mesh = load_mesh("mesh.obj")
    assert mesh.source_material is None or (mesh.source_material.maps[..., :3] > 0.99).all()
    assert any("outside the mesh's folder" in note for note in mesh.notes)
    assert doors.paths


@pytest.mark.parametrize("what", ["buffer", "image"])
@pytest.mark.parametrize("reference", REFERENCES)
def test_a_gltf_names_nothing_outside_its_folder(reference: str, what: str, doors: Doors):
    Path("link.png").symlink_to("../secret.png")
    Path("linked").symlink_to("..")
    positions = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "<f4").tobytes()
    Path("own.bin").write_bytes(positions)
    document = {
        "asset": {"version": "2.0"},
        "buffers": [{"uri": reference if what == "buffer" else "own.bin", "byteLength": 36}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "accessors": [{"bufferView": 0, "count": 3, "componentType": 5126, "type": "VEC3"}],
        "images": [{"uri": reference}],
        "textures": [{"source": 0}],
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "material": 0}]}],
        "nodes": [{"mesh": 0}],
    }
    Path("mesh.gltf").write_text(json.dumps(document))
    if what == "buffer":
        with pytest.raises(UserError, match="outside the mesh's folder"):
            load_mesh("mesh.gltf")
    else:
        notes = load_mesh("mesh.gltf").notes
        assert any("outside the mesh's folder" in note for note in notes)
    assert doors.paths


def test_archives_are_no_meshes(tmp_path: Path):
    packed = gzip.compress(bytes(10**7))
    with zipfile.ZipFile(tmp_path / "archive", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mesh.obj", bytes(10**7))
    for kind in ("obj", "glb", "gltf", "ply", "stl", "off"):
        (tmp_path / f"gzip.{kind}").write_bytes(packed)
        shutil.copyfile(tmp_path / "archive", tmp_path / f"zip.{kind}")
        for name in ("gzip", "zip"):
            with pytest.raises(UserError, match="mesh must be a sound"):
                load_mesh(tmp_path / f"{name}.{kind}")
    (tmp_path / "mesh.obj.gz").write_bytes(packed)
    with pytest.raises(UserError, match="mesh must be a file that ends in one of"):
        load_mesh(tmp_path / "mesh.obj.gz")


LONG_LINE = """
import resource, sys, time
from sdslab.errors import UserError
from sdslab.meshes.mesh_io import load_mesh
before = resource.getrusage(resource.RUSAGE_SELF)
try:
    load_mesh(sys.argv[1])
    print("taken")
except UserError as error:
    print(error)
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_utime - before.ru_utime, (after.ru_maxrss - before.ru_maxrss) / 1024)
"""


@pytest.mark.parametrize(
    ("start", "word"),
    [
        (b"v", b" 1"),
        pytest.param(b"f", b" 1", marks=pytest.mark.slow),
        pytest.param(b"# ", b"ab", marks=pytest.mark.slow),
        pytest.param(b"o ", b"ab", marks=pytest.mark.slow),
        pytest.param(b"v ", b"11", marks=pytest.mark.slow),
        (b"", b"\\\n"),
    ],
    ids=["v", "f", "comment", "name", "number", "continued"],
)
def test_an_obj_of_one_line_of_100_mb_is_bounded(start: bytes, word: bytes, tmp_path: Path):
    """Seconds of the processor's time, and memory of the file's order."""
    path = tmp_path / "mesh.obj"
    path.write_bytes(start + word * (50 * 2**20))
    done = subprocess.run(
        [sys.executable, "-c", LONG_LINE, path], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    message, numbers = done.stdout.splitlines()
    assert message.startswith("mesh must be a sound OBJ file")
    assert len(message) < 500
    seconds, mib = map(float, numbers.split())
    assert seconds < 30
    assert mib < 1000


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_deepfloyd_one(folder / "if-1")
    save_deepfloyd_two(folder / "if-2")
    return folder


@pytest.mark.parametrize(
    "place",
    [
        "if-1/unet/diffusion_pytorch_model.bin", "if-1/text_encoder/pytorch_model.bin",
        "if-2/unet/diffusion_pytorch_model.ckpt", "if-1", "embeddings.pt", "maps.pth", "run.ckpt",
    ],
)  # fmt: skip
def test_pickles_are_refused_wherever_a_file_is_read(
    place: str, models: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models, "models")
    path = Path("models") / place
    if path.is_dir():
        shutil.rmtree(path)
    if path.parent.name in ("unet", "text_encoder"):
        next(path.parent.glob("*.safetensors")).unlink()
    path.write_bytes(pickle.dumps(Bomb()))
    options = {
        "embeddings.pt": ("--prompt=a cow", "--embeddings", str(path), "--model=models/if-1",
                          "--sr-model=none"),
        "maps.pth": ("--target=coffee", "--init", str(path)),
        "run.ckpt": ("--resume", str(path)),
    }.get(place, ("--prompt=a cow", "--model=models/if-1", "--sr-model=models/if-2", "--unlit",
                  "--steps=1", *SMALL))  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert texture(monkeypatch, "sphere", *options, "--out=out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "convert it: python -c" in error
    assert not Path("opened").exists()


@pytest.mark.parametrize("prompt", ["a\x1b]0;owned\x07", "a\nb", "a\x00b", "\u202ea cow", "\udcff"])
def test_prompts_with_control_characters_are_refused(
    prompt: str, doors: Doors, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    for option in ("--prompt", "--negative-prompt"):
        given = {"--prompt": "a cow"} | {option: prompt}
        words = [f"{name}={text}" for name, text in given.items()]
        assert texture(monkeypatch, "sphere", *words) == 2
        error = capsys.readouterr().err
        assert error.isascii()
        assert f"{option} must be one line of text that can be printed" in error
    assert list(Path().iterdir()) == []
    assert doors.addresses == []


@pytest.mark.parametrize(
    ("prompt", "folder"),
    [
        ("../../etc/passwd", "sphere-etc-passwd"),
        ("/../..\\..\\x", "sphere-x"),
        ("..", "sphere-prompt"),
        ("x" * 5000, "sphere-" + "x" * 60),
    ],
)
def test_prompts_name_a_folder_below_runs(
    prompt: str, folder: str, models: Path, doors: Doors, monkeypatch
):
    options = ("--model", models / "if-1", "--sr-model=none", "--unlit", "--steps=1", *SMALL)
    assert texture(monkeypatch, "sphere", "--prompt", prompt, *options) == 0
    assert [path.name for path in Path("runs").iterdir()] == [folder]
    assert doors.paths


@pytest.mark.parametrize(
    "name", ["metrics.csv", "mesh.glb", "contact_sheet.png", "report.html", "maps", "obj/mesh.mtl"]
)
def test_a_hostile_run_folder_is_no_way_out(name: str, doors: Doors, monkeypatch, capsys):
    """A link where an output belongs is neither followed nor replaced: the run is refused."""
    record = json.dumps({"schema": 1, "program": "texture", "config": {}})
    link = Path("run") / name
    link.parent.mkdir(parents=True)
    (Path("run") / "run.json").write_text(record)
    link.symlink_to("../../secret.png" if link.parent.name == "run" else "../../../secret.png")
    assert texture(monkeypatch, "torus", *RUN, "--out=run", "--fresh") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert link.is_symlink()
    assert Path("../secret.png").read_bytes() == png(4, 4)
    assert (Path("run") / "run.json").read_text() == record
    doors.paths.clear()  # whether it is there was looked at
