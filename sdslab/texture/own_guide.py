"""``--guidance MODULE:NAME``: a material led by a denoiser or a guide of the user's own."""

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from sdslab.denoisers.denoiser import Denoiser, require_denoiser
from sdslab.denoisers.noise_schedule import UniformTimesteps, weighting_named
from sdslab.diffusion_guide import DiffusionGuide, Draw
from sdslab.diffusion_space import PixelSpace
from sdslab.errors import UserError
from sdslab.meshes.mesh import Mesh
from sdslab.optimization.material_optimization import Guide, MaterialProblem
from sdslab.optimization.optimizer_state import OptimizeConfig
from sdslab.rendering.cameras import Cameras
from sdslab.rendering.renderer import Renderer
from sdslab.shell.named_inputs import named_object
from sdslab.shell.progress_lines import ProgressLines
from sdslab.texture.outputs import TextureResult, seen_words
from sdslab.texture.stage import Stage, run_stage
from sdslab.texture.workspace import Workspace

WEIGHTING = "x0_castex"
TIMESTEPS = (20, 980)


@dataclass(frozen=True, eq=False)
class GuideSetup:
    """What the named function gets to make a denoiser or a guide from.

    Attributes:
        mesh: what is textured.
        renderer: of the steps' pictures; a guide may render other materials with it.
        device: where the steps compute.
        steps: how many there will be.
        seed: of the run.
        prompt: the text of ``--prompt``, or None.
    """

    mesh: Mesh
    renderer: Renderer
    device: torch.device
    steps: int
    seed: int
    prompt: str | None


def texture_by_own_guide(workspace: Workspace, progress: ProgressLines) -> TextureResult:
    """Textures the mesh as the user's own object leads.

    The named function is called with a `GuideSetup` and returns a `Denoiser`, which Eq. 1 then
    distils, or a `Guide`: a function of (z, step index, scene, surface) to an `SDSResult`.

    Raises:
        UserError: the object cannot be had, or returns neither of the two.
    """
    initial = workspace.initial_maps()
    config = workspace.config(_optimization, initial)
    problem = MaterialProblem(
        workspace.theta(initial),
        workspace.renderer,
        workspace.scenes(),
        PixelSpace(),
        _guide(workspace, config.optimization.steps),
        config,
        workspace.unseen(),
    )
    workspace.record["config"]["stages"] = {"own": dataclasses.asdict(config.optimization)}
    workspace.begin()
    outcome = run_stage(Stage("own", problem), workspace, progress)
    line, share = seen_words(problem.seen.texels().cpu(), workspace.covered)
    return TextureResult(
        {"result": problem.maps().cpu()},
        {
            "steps": outcome.steps,
            "skipped": outcome.skipped,
            "optimization_seconds": round(outcome.seconds, 2),
            "seen_share": share,
        },
        (f"{outcome.steps} steps in {outcome.seconds:.1f} s; {line}",),
        outcome.interrupt,
    )


def _optimization(steps: int, learning_rate: float) -> OptimizeConfig:
    return OptimizeConfig(steps, learning_rate=learning_rate, learning_rate_schedule="cosine")


def _guide(workspace: Workspace, steps: int) -> Guide:
    setup = GuideSetup(
        workspace.mesh,
        workspace.renderer,
        workspace.device,
        steps,
        workspace.seed(),
        workspace.arguments.subject.prompt,
    )
    name = workspace.guidance
    make = named_object(name, "--guidance")
    made: Any = make(setup) if callable(make) else make
    if not isinstance(made, Denoiser):
        if not callable(made) or isinstance(made, type):
            raise UserError(
                f"--guidance {name} must return a Denoiser or a guide, a function of (z, index, "
                f"scene, surface), got a {type(made).__name__}; see examples/own_guide.py"
            )
        return cast(Guide, made)
    try:
        require_denoiser(name, made)
    except TypeError as error:
        raise UserError(str(error)) from error
    return DiffusionGuide(
        made,
        _first_prompt,
        workspace.renderer,
        Draw(UniformTimesteps(*TIMESTEPS), steps, workspace.seed()),
        weighting_named(WEIGHTING),
        clamp=1.0,
    )


def _first_prompt(cameras: Cameras) -> Tensor:
    return torch.zeros(len(cameras), dtype=torch.long)
