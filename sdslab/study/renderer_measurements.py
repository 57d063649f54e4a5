"""What the renderer study measures: comparisons, whole steps and recoveries, each one row."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from sdslab.errors import UserError
from sdslab.machine import peak_memory_mb, resolve_device
from sdslab.material_recovery import (
    grey_material,
    light_sampler,
    measure,
    recovery_optimization,
    recovery_problem,
)
from sdslab.meshes.material import picture_material, without
from sdslab.meshes.mesh import Mesh
from sdslab.meshes.mesh_io import load_mesh
from sdslab.meshes.procedural_meshes import subdivide
from sdslab.optimization.material_optimization import MaterialConfig, maps_of, optimize_material
from sdslab.optimization.optimize import Step
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.pictures.image_io import load_image
from sdslab.rendering.backends import make_backend
from sdslab.rendering.cameras import CAMERA_SAMPLERS, Cameras, CameraSampler
from sdslab.rendering.preview import Previewer
from sdslab.rendering.render_backend import RenderBackend, sample_texture
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.scene import SceneSampler
from sdslab.rendering.texels import SeenTexels
from sdslab.runs.from_toml import PowerOfTwo
from sdslab.study.measuring import quantile_columns, quantiles_ms, quantiles_of

# The share of ids that two exact methods may tell apart: pixel centres on an edge.
ID_BUDGET = 1e-4
TEXTURE_BUDGET = 1e-4
# CasTex's cameras at the middle of their range: steps of equal work, so that a few tell the time.
MEAN_DISTANCE = CameraSampler(radius=(4.4, 4.4))
TextureSize = Annotated[int, PowerOfTwo(1, 8192)]
Sampler = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class RendererSettings:
    """What every row shares."""

    mesh: str = "torus"
    """A file, or a built-in mesh."""
    target: str = "coffee"
    """The picture that steps and recoveries are guided to."""
    device: str = "auto"
    """"auto" is cuda where there is one."""
    repeats: int = 15
    """Timed calls of each row, after one that is not."""
    out: str = "figures"
    """Folder for the results."""


@dataclass(frozen=True)
class Comparison:
    """One operation, ours and a reference's."""

    name: str
    label: str
    operation: Literal["visibility", "texture"]
    """"visibility" against embree, "texture" against plain torch."""
    views: int
    render_size: int
    texture_size: TextureSize = 1


@dataclass(frozen=True)
class StepTiming:
    """Whole optimisation steps."""

    name: str
    label: str
    views: int
    render_size: int
    texture_size: TextureSize
    subdivisions: int = 0
    """Each turns every face into four."""
    repeats: int | None = None
    """In place of the settings' own."""


@dataclass(frozen=True)
class Recovery:
    """A known material, recovered from grey."""

    name: str
    label: str
    views: int
    render_size: int
    texture_size: TextureSize
    steps: int
    learning_rate: float
    cameras: Literal["castex", "wide"] = "castex"
    """A name of ``sdslab.rendering.cameras.CAMERA_SAMPLERS``."""
    lights: tuple[str, ...] = ()
    unlit: bool = False
    fixed_light: bool = False
    disable: tuple[Literal["albedo", "roughness", "metallic", "normal"], ...] = ()
    """Maps that are known to be neutral: no metal, no bumps, roughness 0.5."""


def compare(case: Comparison, settings: RendererSettings) -> dict[str, Any]:
    """Times one operation against its reference, after both gave the same.

    Returns:
        Columns of a row.

    Raises:
        UserError: they differ.
    """
    device = resolve_device(settings.device)
    mesh = load_mesh(settings.mesh)
    backend = make_backend("auto", device)
    cameras = MEAN_DISTANCE.sample(0, 0, case.views)
    positions = mesh.render_positions
    clip = torch.nn.functional.pad(positions, (0, 1), value=1.0) @ cameras.world_to_clip.mT
    clip, faces = clip.to(device), mesh.faces.to(device)
    size = (case.render_size, case.render_size)
    ids = backend.visibility(clip, faces, size)
    if case.operation == "visibility":
        trace = _embree(mesh, cameras, case.render_size)
        seen = torch.from_numpy(trace()).view(ids.shape) + 1
        name, disagreement = "embree (embreex)", (seen != ids.cpu()).double().mean().item()
        _check(case, name, disagreement, ID_BUDGET)
        ours = quantiles_ms(lambda: backend.visibility(clip, faces, size), settings.repeats, device)
        theirs = quantiles_ms(trace, settings.repeats, torch.device("cpu"))
    else:
        look_up = _look_up(backend, case, clip, faces, ids, mesh.uv.to(device))
        pairs = zip(look_up(backend.sample_texture), look_up(sample_texture), strict=True)
        name = "plain torch"
        disagreement = max(
            ((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs
        )
        _check(case, name, disagreement, TEXTURE_BUDGET)
        repeats = settings.repeats
        ours = quantiles_ms(lambda: look_up(backend.sample_texture), repeats, device)
        theirs = quantiles_ms(lambda: look_up(sample_texture), max(2, repeats // 3), device)
    return {
        **quantile_columns("ours", ours),
        "reference": name,
        **quantile_columns("reference", theirs),
        "ratio": theirs[1] / ours[1],
        "disagreement": disagreement,
    }


def _check(case: Comparison, reference: str, disagreement: float, budget: float) -> None:
    if not disagreement <= budget:  # nor is NaN
        raise UserError(
            f"{case.name}: ours must equal {reference} to {budget:g}, got {disagreement:.3g}; no "
            f"speed is reported of a wrong result"
        )


def _look_up(
    backend: RenderBackend, case: Comparison, clip: Tensor, faces: Tensor, ids: Tensor, uv: Tensor
) -> Callable[[Sampler], tuple[Tensor, Tensor]]:
    """Looks up random maps where the pixels lie, and takes a random gradient back to the maps."""
    fragments = backend.resolve(clip, faces, ids, uv)
    uv, derivatives = fragments.attributes.contiguous(), fragments.uv_derivatives
    shape = (case.texture_size, case.texture_size, 8)
    maps = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(uv.device)
    maps.requires_grad_()
    cotangent = torch.randn(len(uv), 8, generator=torch.Generator().manual_seed(1)).to(uv.device)

    def look_up(sample: Sampler) -> tuple[Tensor, Tensor]:
        looked_up = sample(maps, uv, derivatives)
        return looked_up.detach(), torch.autograd.grad(looked_up, maps, cotangent)[0]

    return look_up


def _embree(mesh: Mesh, cameras: Cameras, size: int) -> Callable[[], np.ndarray]:
    """A call that traces one ray through each pixel centre; the rays are made beforehand."""
    try:
        from embreex import rtcore_scene
        from embreex.mesh_construction import TriangleMesh
    except ImportError as error:
        raise UserError(
            "the visibility comparison needs embreex, got none; pip install embreex"
        ) from error
    scene: Any = rtcore_scene.EmbreeScene()  # type: ignore[attr-defined]
    TriangleMesh(scene, mesh.render_positions[mesh.faces.long()].numpy())
    rays = [_rays(world_to_clip, size) for world_to_clip in cameras.world_to_clip]
    return lambda: np.concatenate([scene.run(origin, direction) for origin, direction in rays])


def _rays(world_to_clip: Tensor, size: int) -> tuple[np.ndarray, np.ndarray]:
    centres = (2 * torch.arange(size).double() + 1) / size - 1
    y, x = torch.meshgrid(-centres, centres, indexing="ij")
    clip_to_world = torch.linalg.inv(world_to_clip.double())
    ends = []
    for z in (-1.0, 1.0):
        point = torch.stack((x, y, torch.full_like(x, z), torch.ones_like(x)), -1).view(-1, 4)
        point = point @ clip_to_world.T
        ends.append(point[:, :3] / point[:, 3:])
    direction = torch.nn.functional.normalize(ends[1] - ends[0], dim=-1)
    return ends[0].float().numpy(), direction.float().numpy()


def time_steps(case: StepTiming, settings: RendererSettings) -> dict[str, Any]:
    """Times optimisation steps; run it in a process of its own, whose peak memory it reports."""
    repeats = case.repeats or settings.repeats
    recovery = Recovery(
        case.name,
        case.label,
        views=case.views,
        render_size=case.render_size,
        texture_size=case.texture_size,
        steps=repeats + 2,
        learning_rate=0.01,
        lights=("studio", "sky"),
    )
    mesh = load_mesh(settings.mesh)
    for _ in range(case.subdivisions):
        mesh = subdivide(mesh)
    run = _Run(recovery, settings, mesh, MEAN_DISTANCE)
    seconds = [step.seconds for step in run.steps()]
    # The time between two steps' losses is one whole step; the first compiles and allocates.
    step_ms = quantiles_of(list(np.diff(seconds)[1:] * 1000))
    peaks = peak_memory_mb(run.renderer.device)
    peak = peaks.get("gpu", peaks["process"])
    return {"faces": len(mesh.faces), **quantile_columns("ours", step_ms), "peak_mb": peak}


def recovery(case: Recovery, settings: RendererSettings) -> Iterator[int | tuple[Any, ...]]:
    """Recovers a known material, and measures it on texels that were seen and on unseen views.

    Yields:
        The number of steps taken; last, the columns of a row, the maps [h, w, 8] on the CPU, and
        labelled views of them and of the material to recover.
    """
    run = _Run(case, settings, load_mesh(settings.mesh))
    seconds = 0.0
    for step in run.steps():
        seconds = step.seconds
        yield step.index + 1
    maps = maps_of(run.theta).detach()
    previewer = Previewer(
        Renderer(run.renderer.mesh, run.renderer.backend, run.renderer.device, supersampling=2),
        run.scenes.lights.environments[0] if run.scenes.lights else None,
        size=256,
    )
    measurement = measure(maps, run.target, run.renderer, run.scenes, run.seen.texels())
    numbers = {
        "steps": case.steps,
        "seconds": seconds,
        "view_psnr_db": measurement.view_psnr_db,
        "white_room_psnr_db": measurement.white_room_psnr_db,
        **{f"{name}_psnr_db": db for name, db in measurement.map_psnr_db.items()},
    }
    views = previewer.views(case.name, maps), previewer.views("target", run.target)
    yield numbers, (maps.cpu(), *views)


class _Run:
    """A recovery of the settings' target, set up."""

    def __init__(
        self,
        case: Recovery,
        settings: RendererSettings,
        mesh: Mesh,
        cameras: CameraSampler | None = None,
    ) -> None:
        device = resolve_device(settings.device)
        lights = None
        if not case.unlit:
            lights = light_sampler(case.lights, case.fixed_light, 0, device)
        cameras = cameras or CAMERA_SAMPLERS[case.cameras]
        self.scenes = SceneSampler(cameras, lights, "random", case.render_size, seed=0)
        self.renderer = Renderer(mesh, make_backend("auto", device), device)
        picture = load_image(settings.target, case.texture_size)[0]
        self.target = picture_material(picture).to(device)
        initial = without(grey_material(case.texture_size, case.unlit), case.disable)
        self.theta = TexelGrid(initial).to(device)
        self.seen = SeenTexels((case.texture_size, case.texture_size), device)
        self.config = MaterialConfig(
            case.views, recovery_optimization(case.steps, case.learning_rate), case.disable
        )

    def steps(self) -> Iterator[Step]:
        """Runs the loop."""
        return optimize_material(
            recovery_problem(
                self.theta, self.target, self.renderer, self.scenes, self.config, self.seen
            )
        )
