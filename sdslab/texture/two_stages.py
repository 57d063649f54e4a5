"""``--prompt``: CasTex's Figure 1. Stage I is SDS, stage II SR-SDS on renders of its result."""

from pathlib import Path
from typing import Literal

import torch
from rich.progress import Progress
from torch import Tensor

from sdslab.denoisers.denoiser import Denoiser
from sdslab.denoisers.model_table import StageSettings
from sdslab.denoisers.noise_schedule import weighting_named
from sdslab.denoisers.pipeline_source import PipelineSource
from sdslab.denoisers.prompts import (
    OTHER_SIDES,
    VIEW_NAMES,
    Prompts,
    encode_prompts,
    view_of,
    view_prompts,
)
from sdslab.denoisers.unet import PIXEL_KINDS, GuidanceModel, check_stage, load_guidance
from sdslab.denoisers.wrappers import (
    ClassifierFreeGuidance,
    DynamicThresholding,
    PerpendicularNegatives,
)
from sdslab.diffusion_guide import DiffusionGuide
from sdslab.errors import UserError
from sdslab.optimization.material_optimization import MaterialConfig, MaterialProblem
from sdslab.optimization.optimize_config import OptimizeConfig
from sdslab.parameterizations.parameterization import Parameterization
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.rendering.cameras import Cameras
from sdslab.rendering.texels import fill_unseen
from sdslab.texture.arguments import Arguments
from sdslab.texture.outputs import TextureResult
from sdslab.texture.resolved_arguments import model_dtype, resolved_settings, stage_record
from sdslab.texture.stage import Outcome, Stage, run_stage
from sdslab.texture.workspace import Workspace

RENDER_SIZE = 512
NAMES = {1: "stage1", 2: "stage2"}
# A normal map's values are (n + 1) / 2: with half the step, Adam moves n as far as the other maps.
SCALE = torch.tensor([1, 1, 1, 1, 1, 0.5, 0.5, 0.5])


def texture_from_prompt(workspace: Workspace, progress: Progress) -> TextureResult:
    """Textures the mesh as a text says.

    Raises:
        UserError: a model cannot be had or does not fit, or the optimisation diverged.
    """
    _check_graph(workspace)
    settings = resolved_settings(workspace.arguments)
    dtype = model_dtype(workspace.arguments, workspace.device)
    assert settings.stage_one.model is not None
    source = PipelineSource(settings.stage_one.model)
    sr_name = settings.stage_two.model
    sr_source = PipelineSource(sr_name, "--sr-model") if sr_name is not None else None
    # What is missing is said before anything is loaded or computed.
    # DeepFloyd's stages share T5's embeddings; any other pair has encoders of its own.
    shared = check_stage(source, 1) == "IF-I"
    if sr_source is not None:
        shared = check_stage(sr_source, 2) == "IF-II" and shared
    embeddings = workspace.arguments.model.embeddings
    prompts = _prompts(workspace, source, dtype, progress, embeddings)
    sr_prompts = prompts
    if sr_source is not None and not shared:
        sr_prompts = _prompts(workspace, sr_source, dtype, progress)
    initial = workspace.initial_maps()
    workspace.record["config"]["stages"] = {
        NAMES[number]: stage_record(stage)
        for number, stage in ((1, settings.stage_one), (2, settings.stage_two))
        if stage.model is not None
    }
    outcomes: dict[str, Outcome] = {}
    resumed = workspace.resumed
    if resumed is not None and resumed.state["stage"] == NAMES[2]:
        stage_one = resumed.tensors["stage_one"]
        workspace.begin()
    else:
        theta = workspace.theta(initial, SCALE)
        model = _load(workspace, source, 1, dtype, progress)
        stage = _stage(workspace, settings.stage_one, 1, theta, model, prompts, initial)
        workspace.begin()
        stage_one = _run(stage, workspace, outcomes, progress)
        del model, stage  # before stage II's model wants the memory
        if any(outcome.interrupt for outcome in outcomes.values()) or sr_source is None:
            return _textured({NAMES[1]: stage_one}, outcomes)
        workspace.checkpoints.save({"stage_one": stage_one}, {"stage": NAMES[2]})
    assert sr_source is not None
    if workspace.device.type == "cuda":
        torch.cuda.empty_cache()
    model = _load(workspace, sr_source, 2, dtype, progress)
    theta = TexelGrid(stage_one, SCALE).to(workspace.device)
    stage = _stage(workspace, settings.stage_two, 2, theta, model, sr_prompts, stage_one)
    stage_two = _run(stage, workspace, outcomes, progress)
    return _textured({NAMES[2]: stage_two, NAMES[1]: stage_one}, outcomes)


def _check_graph(workspace: Workspace) -> None:
    options = workspace.arguments.model
    if not options.graph:
        return
    if workspace.device.type != "cuda":
        raise UserError(f"--graph needs a CUDA device, got {workspace.device}; leave it out")
    if options.offload:
        raise UserError("--graph and --offload exclude each other: a graph's weights stay in place")


def _prompts(
    workspace: Workspace,
    source: PipelineSource,
    dtype: torch.dtype,
    progress: Progress,
    embeddings: str | None = None,
) -> Prompts:
    options, subject = workspace.arguments.model, workspace.arguments.subject
    assert subject.prompt is not None
    texts = view_prompts(subject.prompt, options.view_names or VIEW_NAMES)
    if embeddings is not None:
        return Prompts.load(Path(embeddings), len(texts) + 1)
    task = progress.add_task("encoding the prompt", total=None, note="")
    prompts = encode_prompts(source, texts, options.negative_prompt, workspace.device, dtype)
    progress.remove_task(task)
    return prompts


def _load(
    workspace: Workspace,
    source: PipelineSource,
    stage: Literal[1, 2],
    dtype: torch.dtype,
    progress: Progress,
) -> GuidanceModel:
    options = workspace.arguments.model
    task = progress.add_task(f"loading {source.name}", total=None, note="")
    model = load_guidance(
        source,
        stage,
        workspace.device,
        dtype,
        offload=options.offload,
        compile=options.compile,
    )
    progress.remove_task(task)
    return model


def _stage(
    workspace: Workspace,
    settings: StageSettings,
    number: int,
    theta: Parameterization,
    model: GuidanceModel,
    prompts: Prompts,
    initial: Tensor,
) -> Stage:
    arguments = workspace.arguments
    in_pixels = model.kind in PIXEL_KINDS
    denoiser = _guided(model.denoiser(prompts), prompts, settings, number, arguments)
    if in_pixels and settings.x0_bound == "dynamic":
        denoiser = DynamicThresholding(denoiser, *model.thresholds)

    def prompt_of(cameras: Cameras) -> Tensor:
        return view_of(cameras.eye)

    guide = DiffusionGuide(
        denoiser,
        prompt_of,
        workspace.renderer,
        settings.timesteps,
        settings.steps,
        workspace.seed(number),
        weighting_named(settings.weighting),
        1.0 if in_pixels and settings.x0_bound == "clamp" else None,
        settings.gradient_clamp,
        settings.shared_timestep,
        initial.to(workspace.device) if number == 2 else None,
        settings.sr_mode,
        model.low_size,
        model.condition_schedule if settings.sr_mode == "pipeline" else None,
    )
    render_size = arguments.rendering.render_size or max(RENDER_SIZE, model.size)
    workspace.record["config"]["stages"][NAMES[number]]["render_size"] = render_size
    optimization = OptimizeConfig(
        settings.steps,
        learning_rate=settings.learning_rate,
        learning_rate_schedule=settings.learning_rate_schedule,
    )
    return Stage(
        NAMES[number],
        MaterialProblem(
            theta,
            workspace.renderer,
            workspace.scenes(render_size, number),
            model.space,
            guide,
            MaterialConfig(settings.views, optimization, arguments.optimization.held, initial),
            workspace.unseen(),
        ),
        carried={"stage_one": initial} if number == 2 else {},
        record=arguments.model.graph,
    )


def _guided(
    model: Denoiser, prompts: Prompts, settings: StageSettings, number: int, arguments: Arguments
) -> Denoiser:
    """With classifier-free guidance, or with the other sides' prompts as negatives in stage I."""
    low_memory, weight = arguments.model.low_memory, arguments.distillation.perp_neg
    row, scale = prompts.unconditional, settings.guidance_scale
    if weight and number == 1:
        others = torch.tensor(OTHER_SIDES)
        return PerpendicularNegatives(model, row, others, scale, weight, low_memory=low_memory)
    return ClassifierFreeGuidance(model, row, scale, low_memory=low_memory)


def _run(
    stage: Stage, workspace: Workspace, outcomes: dict[str, Outcome], progress: Progress
) -> Tensor:
    """The stage's maps on the CPU; what no view saw takes the nearest's colours."""
    outcomes[stage.name] = run_stage(stage, workspace, progress)
    maps = stage.problem.maps().cpu().clone()
    return fill_unseen(maps, stage.problem.seen.texels().cpu(), workspace.mesh)


def _textured(materials: dict[str, Tensor], outcomes: dict[str, Outcome]) -> TextureResult:
    interrupt = next((o.interrupt for o in outcomes.values() if o.interrupt is not None), None)
    lines = []
    for name, outcome in outcomes.items():
        line = f"{name}: {outcome.steps} steps in {outcome.seconds:.1f} s"
        if outcome.skipped:
            line += f", {outcome.skipped} of them skipped: the model's output was not finite"
        lines.append(line)
    results = {
        name: {"steps": o.steps, "skipped": o.skipped, "seconds": round(o.seconds, 2)}
        for name, o in outcomes.items()
    }
    return TextureResult(materials, results, tuple(lines), interrupt)
