"""``--prompt``: CasTex's Figure 1. Stage I is SDS, stage II SR-SDS on renders of its result."""

import dataclasses
from pathlib import Path
from typing import Literal

import torch
from rich.progress import Progress
from torch import Tensor

from sdslab.denoisers.denoiser import ClassifierFreeGuidance
from sdslab.denoisers.model_table import PRESETS, STABLE_DIFFUSION, Preset, StageSettings
from sdslab.denoisers.noise_schedule import weighting_named
from sdslab.denoisers.pipeline_source import PipelineSource
from sdslab.denoisers.prompts import Prompts, encode_prompts
from sdslab.denoisers.unet import PIXEL_KINDS, GuidanceModel, Kind, check_stage, load_guidance
from sdslab.denoisers.view_prompts import VIEW_NAMES, view_of, view_prompts
from sdslab.errors import UserError
from sdslab.material_optimization import MaterialConfig, maps_of
from sdslab.optimize import OptimizeConfig
from sdslab.parameterizations.parameterization import Parameterization
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.rendering.cameras import Cameras
from sdslab.rendering.seen_texels import SeenTexels
from sdslab.rendering.unseen_texels import fill_unseen
from sdslab.texture.arguments import Arguments
from sdslab.texture.diffusion_guide import DiffusionGuide
from sdslab.texture.program import Textured
from sdslab.texture.stage import Outcome, Stage, run_stage
from sdslab.texture.workspace import Workspace

RENDER_SIZE = 512
NAMES = {1: "stage1", 2: "stage2"}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def texture_from_prompt(workspace: Workspace, progress: Progress) -> Textured:
    """Textures the mesh as a text says.

    Raises:
        UserError: a model cannot be had or does not fit, or the optimisation diverged.
    """
    arguments = workspace.arguments
    kind = _kind(arguments)
    latent = workspace.guidance == "stable-diffusion" or (kind or "IF-I") not in PIXEL_KINDS
    settings = resolved(arguments, STABLE_DIFFUSION if latent else None)
    dtype = _dtype(arguments, workspace.device)
    source = PipelineSource(_model(settings.stage_one))
    two_stages = settings.stage_two.model is not None
    sr_source = PipelineSource(_model(settings.stage_two), "--sr-model") if two_stages else None
    # What is missing is said before anything is loaded or computed.
    kind = check_stage(source, 1)
    if sr_source is not None:
        check_stage(sr_source, 2)
    prompts = _prompts(workspace, source, dtype, progress)
    initial = workspace.initial_maps()
    model = _load(workspace, source, 1, dtype, progress)
    workspace.record["settings"] = dataclasses.asdict(settings)
    workspace.begin()
    size = (workspace.texture_size, workspace.texture_size)
    resumed = workspace.resumed
    outcomes: dict[str, Outcome] = {}
    seen = SeenTexels(size, workspace.device)
    theta = workspace.theta(initial)
    if resumed is not None and resumed.state["stage"] == NAMES[2]:
        stage_one = resumed.tensors["stage_one"]
    else:
        stage = _stage(workspace, settings.stage_one, 1, theta, model, prompts, None)
        outcomes[stage.name] = run_stage(stage, workspace, seen, progress)
        stage_one = _finished(workspace, theta, seen)
        if two_stages and outcomes[stage.name].interrupt is None:
            workspace.checkpoints.save({"stage_one": stage_one}, {"stage": NAMES[2]})
    materials = {NAMES[1]: stage_one}
    if sr_source is not None and all(o.interrupt is None for o in outcomes.values()):
        del model  # before stage II's model wants the memory
        if workspace.device.type == "cuda":
            torch.cuda.empty_cache()
        sr_model = _load(workspace, sr_source, 2, dtype, progress)
        sr_prompts = prompts
        # DeepFloyd's stages share T5's embeddings; any other pair has encoders of its own.
        if (kind, sr_model.kind) != ("IF-I", "IF-II"):
            sr_prompts = _prompts(workspace, sr_source, dtype, progress)
        seen = SeenTexels(size, workspace.device)
        theta = TexelGrid(stage_one).to(workspace.device)
        stage = _stage(workspace, settings.stage_two, 2, theta, sr_model, sr_prompts, stage_one)
        outcomes[stage.name] = run_stage(stage, workspace, seen, progress)
        materials = {NAMES[2]: _finished(workspace, theta, seen), NAMES[1]: stage_one}
    return _textured(materials, outcomes)


def _kind(arguments: Arguments) -> Kind | None:
    """Of ``--model``, where it is given.

    Raises:
        UserError: it is not what ``--guidance`` asks for.
    """
    options, asked = arguments.model, arguments.subject.guidance
    if options.model is None:
        return None
    kind = check_stage(PipelineSource(options.model), 1)
    if asked is not None and (asked == "deepfloyd") != (kind in PIXEL_KINDS):
        raise UserError(
            f"--guidance {asked} needs a model of its kind, got --model {options.model}, which is "
            f"{kind}; leave --guidance out"
        )
    return kind


def resolved(arguments: Arguments, preset: Preset | None = None) -> Preset:
    """The preset, with what the command line says in its place.

    Args:
        arguments: of the command line.
        preset: in place of ``--preset``'s.
    """
    options, optimization = arguments.model, arguments.optimization
    preset = preset or PRESETS[options.preset]
    shared = {"views": optimization.views, "learning_rate": optimization.learning_rate}
    one = {
        "model": options.model,
        "steps": optimization.steps,
        "guidance_scale": options.guidance_scale,
        **shared,
    }
    two = {
        "model": options.sr_model,
        "steps": optimization.sr_steps,
        "guidance_scale": options.sr_guidance_scale,
        **shared,
    }
    stage_one, stage_two = (
        dataclasses.replace(stage, **{k: v for k, v in given.items() if v is not None})
        for stage, given in ((preset.stage_one, one), (preset.stage_two, two))
    )
    if stage_two.model == "none":
        stage_two = dataclasses.replace(stage_two, model=None)
    return Preset(stage_one, stage_two)


def _model(settings: StageSettings) -> str:
    assert settings.model is not None
    return settings.model


def _dtype(arguments: Arguments, device: torch.device) -> torch.dtype:
    if arguments.model.dtype != "auto":
        return DTYPES[arguments.model.dtype]
    return torch.float16 if device.type == "cuda" else torch.float32


def _prompts(
    workspace: Workspace, source: PipelineSource, dtype: torch.dtype, progress: Progress
) -> Prompts:
    options, subject = workspace.arguments.model, workspace.arguments.subject
    assert subject.prompt is not None
    texts = view_prompts(subject.prompt, options.view_names or VIEW_NAMES)
    if options.embeddings is not None:
        return Prompts.load(Path(options.embeddings), len(texts) + 1)
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
    stage_one: Tensor | None,
) -> Stage:
    optimization = workspace.arguments.optimization
    guided = ClassifierFreeGuidance(
        model.denoiser(prompts),
        prompts.unconditional,
        settings.guidance_scale,
        low_memory=workspace.arguments.model.low_memory,
    )

    def prompt_of(cameras: Cameras) -> Tensor:
        return view_of(cameras.eye)

    guide = DiffusionGuide(
        guided,
        prompt_of,
        workspace.renderer,
        settings.timesteps,
        settings.steps,
        workspace.seed(number),
        weighting_named(settings.weighting),
        settings.clamp if model.kind in PIXEL_KINDS else None,
        settings.shared_timestep,
        None if stage_one is None else stage_one.to(workspace.device),
        settings.sr_mode,
        model.low_size,
        model.condition_schedule if settings.sr_mode == "pipeline" else None,
    )
    render_size = workspace.arguments.rendering.render_size or max(RENDER_SIZE, model.size)
    return Stage(
        NAMES[number],
        theta,
        guide,
        model.space,
        workspace.scenes(render_size, number),
        MaterialConfig(
            settings.views,
            OptimizeConfig(
                settings.steps,
                learning_rate=settings.learning_rate,
                learning_rate_schedule=settings.learning_rate_schedule,
            ),
            optimization.frozen,
        ),
        carried={} if stage_one is None else {"stage_one": stage_one},
    )


def _finished(workspace: Workspace, theta: Parameterization, seen: SeenTexels) -> Tensor:
    """The stage's maps on the CPU; what no view saw takes the nearest's colours."""
    with torch.no_grad():
        maps = maps_of(theta).detach().cpu().clone()
    return fill_unseen(maps, seen.texels().cpu(), workspace.mesh)


def _textured(materials: dict[str, Tensor], outcomes: dict[str, Outcome]) -> Textured:
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
    return Textured(materials, results, tuple(lines), interrupt)
