"""The picture as a whole: invariances, filling, G-buffer, and where gradients go."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from sdslab.errors import UserError
from sdslab.meshes.material import NORMAL, constant_material
from sdslab.meshes.mesh import Mesh
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.pictures.color import linear_to_srgb, srgb_to_linear
from sdslab.pictures.metrics import psnr_db
from sdslab.rendering.backends import TritonBackend, make_backend, renderer_for
from sdslab.rendering.cameras import CAMERA_SAMPLERS, Cameras, CameraSampler, frame_fill
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.lighting import Environment, Lighting
from sdslab.rendering.renderer import Renderer
from tests.interpreted import INTERPRETED

CPU = torch.device("cpu")


def random_material(size: int = 64, seed: int = 0) -> Tensor:
    """Smooth enough that neighbouring texels agree."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 8, 8, 8, generator=generator)
    maps = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")[0]
    maps[NORMAL] = 0.5 + 0.15 * (maps[NORMAL] - 0.5)
    maps[7] = 0.97
    return maps.movedim(0, -1).contiguous()


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return PROCEDURAL_MESHES["torus"]()


@pytest.fixture(scope="module")
def environment() -> Environment:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 4, 8, generator=generator)
    radiance = torch.nn.functional.interpolate(coarse, size=(32, 64), mode="bilinear")[0]
    return Environment.from_radiance(radiance.movedim(0, -1).contiguous(), resolution=32)


def views(count: int = 2) -> Cameras:
    return CameraSampler(radius=(4, 4)).sample(5, 0, count)


def grey(count: int, size: int) -> Tensor:
    return torch.full((count, 3, size, size), 0.5)


def lit(environment: Environment, yaw: list[float]) -> Lighting:
    turn = torch.tensor(yaw)
    return Lighting(environment, turn, torch.ones_like(turn))


def about_y(angle: float) -> Tensor:
    """Counter-clockwise seen from above."""
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def test_turning_the_mesh_is_turning_camera_and_light(mesh: Mesh, environment: Environment):
    """Normals and tangents turn too: CasTex's second stage renders with stale ones."""
    maps, angle = random_material(), math.pi / 2  # by which the bounding box stays the same
    azimuth, elevation = torch.tensor([20.0, 200.0]), torch.tensor([30.0, -20.0])
    radius, fov = torch.full((2,), 4.0), torch.full((2,), 30.0)
    fixed = Cameras.orbit(azimuth, elevation, radius, fov)
    # The eye's azimuth runs from +X to +Z: clockwise seen from above.
    turned = Cameras.orbit(azimuth - math.degrees(angle), elevation, radius, fov)
    turn = about_y(angle).mT
    turned_mesh = dataclasses.replace(
        mesh,
        positions=mesh.positions @ turn.double(),
        normals=mesh.normals @ turn,
        tangents=torch.cat((mesh.tangents[:, :3] @ turn, mesh.tangents[:, 3:]), dim=1),
    )

    def picture(mesh: Mesh, cameras: Cameras, light_turn: float) -> Tensor:
        renderer = Renderer(mesh, CpuBackend())
        light = lit(environment, [0.3 + light_turn, 1.0 + light_turn])
        return renderer.picture(renderer.see(cameras, 96), maps, light, grey(2, 96))

    expected = picture(mesh, fixed, 0)
    # Pixels on edges may see another face.
    assert psnr_db(picture(turned_mesh, turned, angle), expected) > 45
    assert psnr_db(picture(turned_mesh, turned, 0), expected) < 35
    stale = dataclasses.replace(turned_mesh, normals=mesh.normals, tangents=mesh.tangents)
    assert psnr_db(picture(stale, turned, angle), expected) < 35


def test_the_scale_and_place_of_a_file_do_not_show(mesh: Mesh, environment: Environment):
    moved = dataclasses.replace(mesh, positions=mesh.positions * 1e-3 + 4)
    pictures = [
        renderer.picture(
            renderer.see(views(), 64), random_material(), lit(environment, [0, 1]), grey(2, 64)
        )
        for renderer in (Renderer(mesh, CpuBackend()), Renderer(moved, CpuBackend()))
    ]
    assert psnr_db(*pictures) > 60


def test_views_are_framed_by_what_the_faces_use(mesh: Mesh):
    """By nearly the convex hull of it: a vertex of no face counts for nothing."""
    lonely = torch.tensor([[100.0, 0, 0]], dtype=torch.float64)
    attributes = {
        name: torch.cat((getattr(mesh, name), getattr(mesh, name)[:1]))
        for name in ("uv", "normals", "tangents", "source_vertex")
    }
    more = dataclasses.replace(mesh, positions=torch.cat((mesh.positions, lonely)), **attributes)
    renderer, same = Renderer(mesh, CpuBackend()), Renderer(more, CpuBackend())
    assert same.extreme_points.equal(renderer.extreme_points)
    assert same.bounding_radius == renderer.bounding_radius
    cameras = CAMERA_SAMPLERS["wide"].sample(0, 0, 32, renderer.extreme_points)
    few, all_points = (
        frame_fill(cameras, points) for points in (renderer.extreme_points, mesh.render_positions)
    )
    assert ((all_points - few) / all_points).abs().max() < 0.02


def test_gradients_reach_every_map_and_match_finite_differences(
    mesh: Mesh, environment: Environment
):
    renderer = Renderer(mesh, CpuBackend())
    surface = renderer.see(views(), 64)
    weights = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def loss(maps: Tensor) -> Tensor:
        picture = renderer.picture(surface, maps, lit(environment, [0, 1]), grey(2, 64))
        return (picture * weights).double().sum()

    maps = random_material(32).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(maps), maps)
    assert all(gradient[..., channel].abs().sum() > 0 for channel in range(8))
    generator = torch.Generator().manual_seed(1)
    for channel in range(8):
        direction = torch.zeros_like(maps)
        direction[..., channel] = torch.randn(32, 32, generator=generator)
        step = 1e-3  # between kinks of the light's bilinear look-ups, above float32's noise
        with torch.no_grad():
            ahead, behind = loss(maps + step * direction), loss(maps - step * direction)
        expected = ((ahead - behind) / (2 * step)).item()
        actual = (gradient.double() * direction).sum().item()
        scale = gradient[..., channel].double().norm().item() * direction.norm().item()
        assert abs(actual - expected) < 4e-3 * scale, channel


@pytest.mark.parametrize("supersampling", [1, 2, 4])
def test_what_is_not_covered_is_the_background(
    mesh: Mesh, environment: Environment, supersampling: int
):
    renderer = Renderer(mesh, CpuBackend(), supersampling=supersampling)
    surface = renderer.see(views(), 48)
    background = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    picture = renderer.picture(surface, random_material(), lit(environment, [0, 1]), background)
    empty = (surface.coverage() == 0).expand_as(picture)
    assert empty.any()
    assert (picture - background)[empty].abs().max() < 1e-6


def test_supersampling_averages_light_not_its_encoding(mesh: Mesh):
    """White on black: an edge pixel covered by half sends out half the light, sRGB 0.735."""
    maps = constant_material(1, 1, albedo=(1.0, 1.0, 1.0))
    renderer = Renderer(mesh, CpuBackend(), supersampling=4)
    surface = renderer.see(views(), 64)
    picture = renderer.picture(surface, maps, None, torch.zeros(2, 3, 64, 64))
    coverage = surface.coverage().expand_as(picture)
    assert (srgb_to_linear(picture) - coverage).abs().max() < 1e-5
    edges = (coverage > 0) & (coverage < 1)
    assert edges.any()
    assert (picture - linear_to_srgb(coverage)).abs()[edges].max() < 1e-5


def test_supersampled_silhouettes_approach_the_true_area(mesh: Mesh):
    def area(supersampling: int, size: int) -> float:
        surface = Renderer(mesh, CpuBackend(), supersampling=supersampling).see(views(), size)
        return surface.coverage().mean().item()

    truth = area(1, 1024)
    assert abs(area(4, 32) - truth) < abs(area(1, 32) - truth) + 1e-4
    assert area(4, 32) == pytest.approx(truth, rel=5e-3)


def test_castexs_mode_converts_nothing(mesh: Mesh):
    maps = constant_material(4, 4, albedo=(0.2, 0.5, 0.9))
    renderer = Renderer(mesh, CpuBackend(), color_mode="castex")
    surface = renderer.see(views(), 32)
    picture = renderer.picture(surface, maps, None, torch.zeros(2, 3, 32, 32))
    inside = (surface.coverage() == 1)[:, 0]
    assert torch.allclose(picture.movedim(1, -1)[inside], torch.tensor([0.2, 0.5, 0.9]), atol=1e-5)


def test_unlit_pictures_show_what_is_stored(mesh: Mesh):
    """The albedo is sRGB-encoded, decoded for shading, and encoded back."""
    maps = constant_material(4, 4, albedo=(0.2, 0.5, 0.9))
    renderer = Renderer(mesh, CpuBackend())
    surface = renderer.see(views(), 32)
    picture = renderer.picture(surface, maps, None, torch.zeros(2, 3, 32, 32))
    inside = (surface.coverage() == 1)[:, 0]
    assert torch.allclose(picture.movedim(1, -1)[inside], torch.tensor([0.2, 0.5, 0.9]), atol=1e-5)


def test_the_g_buffer_shows_the_geometry(mesh: Mesh):
    renderer = Renderer(mesh, CpuBackend())
    cameras = views()
    surface = renderer.see(cameras, 64)
    buffer = renderer.g_buffer(surface, random_material())
    assert set(buffer) == {
        "mask", "depth", "normal", "uv", "albedo", "roughness", "metallic", "normal_map",
    }  # fmt: skip
    covered = buffer["mask"][:, 0] == 1
    assert covered.any()
    distance = cameras.eye.norm(dim=1)[0]
    depth = buffer["depth"][:, 0][covered]
    assert ((depth > distance - 1.8) & (depth < distance + 1.8)).all()
    normal = 2 * buffer["normal"].movedim(1, -1)[covered] - 1
    assert (normal.norm(dim=1) - 1).abs().max() < 1e-5
    # A closed surface shows its outside: normals lean towards the eye, but for shading normals
    # near the silhouette.
    to_eye = torch.nn.functional.normalize(surface.eye[surface.view] - surface.position, dim=1)
    assert ((surface.normal * to_eye).sum(1) > -0.3).all()
    assert buffer["uv"].min() >= 0
    assert buffer["uv"].max() <= 1


def test_back_faces_show_their_inside(environment: Environment):
    """Seen from within, the normals of a sphere point inwards."""
    renderer = Renderer(PROCEDURAL_MESHES["sphere"](), CpuBackend())
    inside = Cameras.look_at(torch.zeros(1, 3), torch.tensor([[1.0, 0, 0]]), torch.tensor([60.0]))
    surface = renderer.see(inside, 16)
    assert ((surface.normal * -surface.position).sum(1) > 0.9).all()
    picture = renderer.picture(surface, random_material(), lit(environment, [0.0]), grey(1, 16))
    assert picture.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_picture_on_a_gpu_equals_the_cpus(mesh: Mesh, environment: Environment):
    device = torch.device("cuda")
    expected = Renderer(mesh, CpuBackend())
    actual = Renderer(mesh, make_backend("auto", device), device)
    maps, light = random_material(), lit(environment, [0, 1])
    pictures = [
        renderer.picture(
            renderer.see(views(), 128), maps.to(where), light.to(where), grey(2, 128)
        ).cpu()
        for renderer, where in ((expected, CPU), (actual, device))
    ]
    assert psnr_db(*pictures) > 40


@pytest.mark.usefixtures("wide_programs")
def test_tritons_pictures_and_gradients_equal_the_cpus(
    mesh: Mesh, environment: Environment, triton_device: torch.device
):
    pictures, gradients = [], []
    for backend, device in ((CpuBackend(), CPU), (TritonBackend(), triton_device)):
        renderer = Renderer(mesh, backend, device)
        maps = random_material().to(device).requires_grad_()
        surface, light = renderer.see(views(), 32), lit(environment, [0, 1]).to(device)
        picture = renderer.picture(surface, maps, light, grey(2, 32))
        gradients.append(torch.autograd.grad(picture.square().sum(), maps)[0].cpu())
        pictures.append(picture.detach().cpu())
    assert (pictures[0] - pictures[1]).abs().max() < 1e-3
    assert (gradients[0] - gradients[1]).abs().max() < 1e-3 * gradients[0].abs().max()


def test_backends_that_cannot_run_say_what_to_do():
    with pytest.raises(UserError, match="--renderer nvdiffrast needs a CUDA device, got cpu"):
        make_backend("nvdiffrast", CPU)
    with pytest.raises(UserError, match="use --renderer triton there, or --device cpu"):
        make_backend("cpu", torch.device("cuda"))
    if not INTERPRETED:
        with pytest.raises(UserError, match=r"--renderer triton needs a GPU, got cpu; use .* cpu"):
            make_backend("triton", CPU)


def test_a_missing_package_names_its_install_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    cuda = torch.device("cuda")
    with pytest.raises(
        UserError, match=r"pip install .*sdslab\[nvdiffrast\].*diffrp-nvdiffrast.*non-commercial"
    ):
        make_backend("nvdiffrast", cuda)
    with pytest.raises(UserError, match=r"pip install triton.* or use --renderer auto"):
        make_backend("triton", cuda)


def test_auto_is_triton_on_any_gpu():
    pytest.importorskip("triton", reason="triton is not installed")
    assert renderer_for(CPU) == "cpu"
    assert renderer_for(torch.device("cuda")) == "triton"
    assert isinstance(make_backend("auto", torch.device("cuda")), TritonBackend)


def test_a_gpu_without_triton_renders_with_one_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mesh: Mesh
):
    """What renders there is shown on a CPU: it knows no device but its inputs'."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    backend = make_backend("auto", torch.device("cuda"))
    note = capsys.readouterr().err
    assert note.count("note: Triton is missing") == note.count("\n") == 1
    maps, pictures = random_material(), []
    for chosen in (backend, CpuBackend()):
        renderer = Renderer(mesh, chosen)
        pictures.append(renderer.picture(renderer.see(views(), 64), maps, None, grey(2, 64)))
    assert psnr_db(*pictures) > 80


def test_supersampling_is_1_2_or_4(mesh: Mesh):
    with pytest.raises(UserError, match="supersampling must be 1, 2 or 4, got 3"):
        Renderer(mesh, CpuBackend(), supersampling=3)
