"""What the renderer study measures: comparisons, whole steps and recoveries, each one row."""

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdslab.errors import UserError
from sdslab.machine import peak_memory_mb, resolve_device
from sdslab.material_recovery import (
    Measurement,
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
from sdslab.rendering.cameras import CAMERA_SAMPLERS, Cameras, CameraSampler
from sdslab.rendering.preview import Previewer
from sdslab.rendering.renderer import Renderer, make_backend
from sdslab.rendering.scene import SceneSampler
from sdslab.rendering.texels import SeenTexels
from sdslab.rendering.torch_reference import sample_texture
from sdslab.study.mesh_load import LOADERS, disagreement, measure_load, write_grid
from sdslab.study.renderer_specification import (
    Comparison,
    LoadTiming,
    Recovery,
    RendererSettings,
    StepTiming,
)
from sdslab.study.timing import Quantiles, quantiles_ms, quantiles_of

# The share of ids that two exact methods may tell apart: pixel centres on an edge.
ID_BUDGET = 1e-4
TEXTURE_BUDGET = 1e-4
LOAD_BUDGET = 1e-6  # of coordinates in [−1, 1]
# CasTex's cameras at the middle of their range: steps of equal work, so that a few tell the time.
MEAN_DISTANCE = CameraSampler(radius=(4.4, 4.4))


@dataclass(frozen=True)
class ComparisonRow:
    """Milliseconds of a call, as quantiles, and how far the two results are apart."""

    name: str
    label: str
    ours_ms: Quantiles
    reference: str
    reference_ms: Quantiles
    disagreement: float
    budget: float

    @property
    def accepted(self) -> bool:
        """Whether ours equals the reference: no speed is reported of a wrong result."""
        return self.disagreement <= self.budget


@dataclass(frozen=True)
class LoadRow:
    """Milliseconds of CPU time of a load, as quantiles, and the most memory that one took."""

    name: str
    label: str
    faces: int
    ours_ms: Quantiles
    trimesh_ms: Quantiles
    peak_mb: float
    trimesh_peak_mb: float
    disagreement: float


@dataclass(frozen=True)
class StepRow:
    """Milliseconds of a step, as quantiles, and the memory that the process peaked at."""

    name: str
    label: str
    faces: int
    step_ms: Quantiles
    peak_mb: float


@dataclass(frozen=True)
class RecoveryRow:
    """What a recovery reached."""

    name: str
    label: str
    steps: int
    seconds: float
    measurement: Measurement
    maps: Tensor
    """[h, w, 8], on the CPU."""
    pictures: list[tuple[str, Tensor]]
    """Labelled views of it."""
    target_pictures: list[tuple[str, Tensor]]
    """The same views of the material to recover."""


def compare(case: Comparison, settings: RendererSettings) -> ComparisonRow:
    """Times one operation against its reference, and compares their results."""
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
        # nvdiffrast snaps vertices to 1/16 of a pixel.
        budget = ID_BUDGET if device.type == "cpu" else 0.03
        return ComparisonRow(
            case.name,
            case.label,
            quantiles_ms(lambda: backend.visibility(clip, faces, size), settings.repeats, device),
            "embree (embreex)",
            quantiles_ms(trace, settings.repeats, torch.device("cpu")),
            (torch.from_numpy(trace()).view(ids.shape) + 1 != ids.cpu()).double().mean().item(),
            budget,
        )
    fragments = backend.resolve(clip, faces, ids, mesh.uv.to(device))
    uv, derivatives = fragments.attributes.contiguous(), fragments.uv_derivatives
    maps = torch.rand(
        case.texture_size, case.texture_size, 8, generator=torch.Generator().manual_seed(0)
    ).to(device)
    maps.requires_grad_()

    cotangent = torch.randn(len(uv), 8, generator=torch.Generator().manual_seed(1)).to(device)

    def look_up(sample: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        looked_up = sample(maps, uv, derivatives)
        return looked_up.detach(), torch.autograd.grad(looked_up, maps, cotangent)[0]

    pairs = zip(look_up(backend.sample_texture), look_up(sample_texture), strict=True)
    disagreement = max(
        ((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs
    )
    return ComparisonRow(
        case.name,
        case.label,
        quantiles_ms(lambda: look_up(backend.sample_texture), settings.repeats, device),
        "plain torch",
        quantiles_ms(lambda: look_up(sample_texture), max(2, settings.repeats // 3), device),
        disagreement,
        TEXTURE_BUDGET,
    )


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


def time_load(case: LoadTiming, settings: RendererSettings) -> LoadRow:
    """Times loads in fresh processes, ours and trimesh's by turns, after both gave the same mesh.

    Raises:
        UserError: they differ, or there is no trimesh.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"grid.{case.file}"
        write_grid(path, case.faces)
        difference = disagreement(path)  # this compiles what is kept on disk, too
        if not difference <= LOAD_BUDGET:
            raise UserError(
                f"{case.name}: ours must equal trimesh to {LOAD_BUDGET:g}, got {difference:.3g}; "
                f"no speed is reported of a wrong result"
            )
        measured: dict[str, list[tuple[float, float]]] = {loader: [] for loader in LOADERS}
        for _ in range(case.repeats or settings.repeats):
            for loader, results in measured.items():
                with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                    results.append(pool.submit(measure_load, loader, path).result())
    (ours_ms, ours_mb), (trimesh_ms, trimesh_mb) = (
        zip(*results, strict=True) for results in measured.values()
    )
    return LoadRow(
        case.name, case.label, case.faces, quantiles_of(ours_ms), quantiles_of(trimesh_ms),
        max(ours_mb), max(trimesh_mb), difference,
    )  # fmt: skip


def time_steps(case: StepTiming, settings: RendererSettings) -> StepRow:
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
    return StepRow(
        case.name, case.label, len(mesh.faces), step_ms, peaks.get("gpu", peaks["process"])
    )


def measure_recovery(
    case: Recovery, settings: RendererSettings, progress: Callable[[int], object]
) -> RecoveryRow:
    """Recovers a known material and measures it on texels that were seen and on unseen views."""
    run = _Run(case, settings, load_mesh(settings.mesh))
    seconds = 0.0
    for step in run.steps():
        seconds = step.seconds
        progress(step.index + 1)
    maps = maps_of(run.theta).detach()
    previewer = Previewer(
        Renderer(run.renderer.mesh, run.renderer.backend, run.renderer.device, supersampling=2),
        run.scenes.lights.environments[0] if run.scenes.lights else None,
        size=256,
    )
    return RecoveryRow(
        case.name,
        case.label,
        case.steps,
        seconds,
        measure(maps, run.target, run.renderer, run.scenes, run.seen.texels()),
        maps.cpu(),
        previewer.views(case.name, maps),
        previewer.views("target", run.target),
    )


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
