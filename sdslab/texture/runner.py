"""One run of ``python -m sdslab.texture``: loads, optimises, measures and writes."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from sdslab.devices import resolve_device
from sdslab.diffusion_space import PixelSpace
from sdslab.errors import UserError
from sdslab.material_optimization import MaterialConfig, maps_of
from sdslab.material_recovery import (
    Measurement,
    grey_material,
    light_sampler,
    measure,
    recover,
)
from sdslab.meshes.mesh import Mesh
from sdslab.meshes.mesh_io import load_mesh
from sdslab.meshes.seam_dilation import dilate_seams
from sdslab.optimize import OptimizeConfig
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.rendering.cameras import CAMERA_SAMPLERS
from sdslab.rendering.lighting import LightSampler
from sdslab.rendering.preview import Previewer
from sdslab.rendering.render_backend import make_backend
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.scene import SceneSampler
from sdslab.rendering.seen_texels import SeenTexels
from sdslab.rendering.texel_coverage import covered_texels
from sdslab.run_record import run_record, write_json
from sdslab.texture.__main__ import Arguments, default_out
from sdslab.texture.outputs import (
    FIXED_OUTPUTS,
    check_outputs_writable,
    clear_outputs,
    write_outputs,
)
from sdslab.texture.target import load_target, own_maps

DEFAULT_LIGHTS = ("studio", "sky")

console = Console(width=None if sys.stdout.isatty() else 110)
progress_console = Console(stderr=True)


def run(arguments: Arguments) -> None:
    """Recovers a material and writes the textured mesh, its maps, pictures and numbers.

    Raises:
        UserError: something cannot work; nothing was written.
        KeyboardInterrupt: after what was reached has been written.
    """
    if arguments.output.threads is not None:
        torch.set_num_threads(arguments.output.threads)
    device = resolve_device(arguments.output.device)
    backend = make_backend(arguments.rendering.renderer, device)
    out = Path(arguments.output.out or default_out(arguments))
    check_outputs_writable(out)
    config = _config_of(arguments)
    with _progress() as progress:
        mesh = _load_mesh(arguments, progress)
        target, initial = _load_maps(arguments, mesh)
        lights = _load_lights(arguments, device, progress)
    seams = covered_texels(mesh, (len(target), len(target)), make_backend("cpu", _CPU))
    record = run_record(dataclasses.asdict(arguments), device)
    record["mesh"] = {
        "faces": len(mesh.faces),
        "vertices": len(mesh.positions),
        "notes": list(mesh.notes),
    }
    clear_outputs(out)
    write_json(out / "run.json", record)

    rendering = arguments.rendering
    renderer = Renderer(mesh, backend, device, rendering.color_mode, rendering.supersampling)
    scenes = SceneSampler(
        cameras=CAMERA_SAMPLERS[rendering.cameras],
        lights=lights,
        background=rendering.background,
        resolution=rendering.render_size,
        seed=arguments.optimization.seed,
    )
    theta = TexelGrid(initial).to(device)
    seen = SeenTexels((len(target), len(target)), device)
    start = time.perf_counter()
    steps, interrupted = _optimize(config, theta, target.to(device), renderer, scenes, seen)
    seconds = time.perf_counter() - start

    recovered = maps_of(theta).detach()
    measurement = measure(
        recovered, target.to(device), renderer, scenes, seen.texels(), rendering.held_out
    )
    results = dataclasses.asdict(measurement)
    results |= {"steps": steps, "seconds": round(seconds, 2), "interrupted": interrupted}
    write_json(out / "results.json", results)
    previewer = Previewer(
        Renderer(mesh, backend, device, rendering.color_mode, supersampling=2),
        lights.environments[0] if lights else None,
    )
    frames = arguments.output.turntable
    with _progress() as progress:
        task = progress.add_task("writing", total=FIXED_OUTPUTS + frames, note="")
        written = write_outputs(
            out,
            mesh,
            {"recovered": dilate_seams(recovered.cpu(), seams), "target": target},
            previewer,
            extras={name: record[name] for name in ("command", "sdslab", "commit", "started")},
            exr=arguments.output.exr,
            frames=frames,
            progress=lambda name: progress.update(task, advance=1, note=name),
        )
    _print_results(measurement, results)
    for line in (*written.notes, f"written to {out}/: {', '.join(written.names)}, results.json"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if interrupted:
        raise KeyboardInterrupt


_CPU = torch.device("cpu")


def _load_mesh(arguments: Arguments, progress: Progress) -> Mesh:
    task = progress.add_task("loading the mesh", total=1, note="")
    mesh = load_mesh(
        arguments.subject.mesh,
        arguments.subject.unwrap,
        lambda share: progress.update(task, description="unwrapping", completed=share),
        smooth=arguments.subject.smooth,
    )
    progress.remove_task(task)
    text = f"{mesh.name}: {len(mesh.faces):,} faces, {len(mesh.positions):,} vertices"
    notes = "; ".join((text, *mesh.notes))
    progress.console.print(notes, markup=False, highlight=False, soft_wrap=True)
    return mesh


def _load_maps(arguments: Arguments, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """The material to recover and the one to start from, [size, size, 8] on the CPU."""
    size = arguments.optimization.texture_size
    assert arguments.subject.target is not None
    on_cpu = make_backend("cpu", _CPU)
    target = load_target(arguments.subject.target, mesh, size, on_cpu)
    if arguments.subject.init == "source":
        return target, own_maps(mesh, size, on_cpu)
    return target, grey_material(size, arguments.rendering.unlit)


def _load_lights(
    arguments: Arguments, device: torch.device, progress: Progress
) -> LightSampler | None:
    if arguments.rendering.unlit:
        return None
    names = arguments.rendering.light or DEFAULT_LIGHTS
    task = progress.add_task("prefiltering the light", total=None, note="")
    lights = light_sampler(
        names, arguments.rendering.fixed_light, arguments.optimization.seed, device
    )
    progress.remove_task(task)
    return lights


def _config_of(arguments: Arguments) -> MaterialConfig:
    optimization = arguments.optimization
    return MaterialConfig(
        optimization.views,
        OptimizeConfig(
            optimization.steps,
            learning_rate=optimization.learning_rate,
            learning_rate_schedule="cosine",
        ),
        frozen=optimization.frozen,
    )


def _optimize(
    config: MaterialConfig,
    theta: TexelGrid,
    target: Tensor,
    renderer: Renderer,
    scenes: SceneSampler,
    seen: SeenTexels,
) -> tuple[int, bool]:
    """Runs the loop; returns the number of finished steps, and whether Ctrl-C ended it."""
    finished = 0
    with _progress() as progress:
        task = progress.add_task("recovering", total=config.optimization.steps, note="")
        try:
            for step in recover(theta, target, renderer, scenes, PixelSpace(), config, seen):
                finished = step.index + 1
                mean_square = 2 * step.loss / step.z.numel() / 4  # pictures are [0, 1], z is ±1
                note = f"{-10 * torch.tensor(mean_square).log10():.2f} dB"
                progress.update(task, completed=finished, note=note)
        except FloatingPointError as error:
            raise UserError(str(error)) from error
        except KeyboardInterrupt:
            text = f"interrupted at step {finished}: writing what there is"
            progress.console.print(text, markup=False, highlight=False)
            return finished, True
    return finished, False


def _print_results(measurement: Measurement, results: dict[str, Any]) -> None:
    maps = ", ".join(f"{name} {value:.2f}" for name, value in measurement.map_psnr_db.items())
    share = measurement.seen_texels / max(1, measurement.covered_texels)
    pictures = f"held-out views: {measurement.view_psnr_db:.2f} dB over {measurement.pictures}"
    if measurement.white_room_psnr_db is not None:
        pictures += f" pictures, {measurement.white_room_psnr_db:.2f} dB in white light instead"
    else:
        pictures += " pictures"
    for line in (
        pictures,
        f"maps: {maps} dB over the {share:.1%} of the covered texels that were seen",
        f"{results['steps']} steps in {results['seconds']:.1f} s",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=progress_console,
        transient=True,
    )
