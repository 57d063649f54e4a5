"""A command line with every default filled in: what runs, what is recorded and what is compared."""

import dataclasses
from dataclasses import replace
from typing import Any

import torch

from sdslab.denoisers.model_table import PRESETS, STABLE_DIFFUSION, Preset, StageSettings
from sdslab.denoisers.noise_schedule import UniformTimesteps
from sdslab.denoisers.pipeline_source import PipelineSource
from sdslab.denoisers.prompts import VIEW_NAMES
from sdslab.denoisers.unet import PIXEL_KINDS, check_stage
from sdslab.errors import UserError
from sdslab.exemplar_texturing.pyramid import ExemplarConfig
from sdslab.texture.arguments import (
    DEFAULT_EXEMPLAR,
    Arguments,
    Distillation,
    GuidanceName,
    Model,
    Optimization,
)

DEFAULT_LIGHTS = ("studio", "sky")
RECOVERY = Optimization(steps=300, views=4, learning_rate=0.025)
OWN = Optimization(steps=200, views=4, learning_rate=0.025)
RENDER_SIZE = 256
# Sections of the command line that say nothing about a run of this guidance.
_UNUSED: dict[GuidanceName, tuple[str, ...]] = {
    "exemplar": ("model", "distillation"),
    "none": ("model", "distillation"),
    "degenerate": ("exemplar", "model", "distillation"),
    "deepfloyd": ("exemplar",),
    "stable-diffusion": ("exemplar",),
}
# What is said of a command, and not of the run; how many threads is in the record anyway.
_LEFT_OUT = (
    ("output", "resume"), ("output", "fresh"), ("output", "threads"),
    ("output", "accept_code_change"),
)  # fmt: skip
# Where these are not given, each stage has its own, or the guidance has no use for them.
_OF_A_STAGE = (
    ("optimization", "steps"), ("optimization", "sr_steps"), ("optimization", "learning_rate"),
    ("rendering", "render_size"),
)  # fmt: skip


def resolved(arguments: Arguments, guidance: GuidanceName, device: torch.device) -> Arguments:
    """The same run, said in full; arguments that are in full already stay as they are.

    Args:
        arguments: as given.
        guidance: that they ask for.
        device: where it computes.

    Raises:
        UserError: ``--model`` cannot be had, or is not what ``--guidance`` asks for.
    """
    rendering, output = arguments.rendering, arguments.output
    if rendering.renderer == "auto":
        renderer = "nvdiffrast" if device.type == "cuda" else "cpu"
        rendering = replace(rendering, renderer=renderer)
    if not rendering.unlit and not rendering.light:
        rendering = replace(rendering, light=DEFAULT_LIGHTS)
    common = replace(
        arguments,
        subject=replace(arguments.subject, guidance=guidance),
        rendering=rendering,
        output=replace(output, device=str(device)),
    )
    match guidance:
        case "exemplar" | "none":
            return _like_exemplars(common, guidance)
        case "degenerate":
            return _with_steps_of(RECOVERY, common)
        case "deepfloyd" | "stable-diffusion":
            return _from_prompt(arguments, common, device)
        case _:  # the user's own
            return _with_steps_of(OWN, common)


def recorded_config(arguments: Arguments, guidance: GuidanceName) -> dict[str, Any]:
    """What ``run.json`` holds of a run: the options that apply to its guidance.

    Settings that differ from stage to stage, and that options cannot all say, come into
    ``stages`` beside them.

    Args:
        arguments: resolved.
        guidance: of the run.
    """
    config = dataclasses.asdict(arguments)
    for section in _UNUSED.get(guidance, ("exemplar", "model", "distillation")):
        del config[section]
    for section, name in _LEFT_OUT:
        config[section].pop(name)
    for section, name in _OF_A_STAGE:
        if config[section][name] is None:
            del config[section][name]
    return config


def _like_exemplars(arguments: Arguments, guidance: GuidanceName) -> Arguments:
    subject, optimization = arguments.subject, arguments.optimization
    init = subject.init or ("triplanar" if guidance == "none" else "grey")
    exemplar = subject.exemplar or (DEFAULT_EXEMPLAR,)
    views = optimization.views or ExemplarConfig.views
    return replace(
        arguments,
        subject=replace(subject, exemplar=exemplar, init=init),
        optimization=replace(optimization, views=views),
    )


def _with_steps_of(defaults: Optimization, arguments: Arguments) -> Arguments:
    subject, optimization = arguments.subject, arguments.optimization
    filled = {
        name: getattr(optimization, name) or getattr(defaults, name)
        for name in ("steps", "views", "learning_rate")
    }
    size = arguments.rendering.render_size or RENDER_SIZE
    return replace(
        arguments,
        subject=replace(subject, init=subject.init or "grey"),
        optimization=replace(optimization, **filled),
        rendering=replace(arguments.rendering, render_size=size),
    )


def _from_prompt(given: Arguments, arguments: Arguments, device: torch.device) -> Arguments:
    settings = resolved_settings(given)
    one, two = settings.stage_one, settings.stage_two
    optimization = replace(
        arguments.optimization,
        steps=one.steps,
        sr_steps=two.steps if two.model is not None else arguments.optimization.sr_steps,
        views=_shared(settings, "views"),
        learning_rate=_shared(settings, "learning_rate"),
    )
    return replace(
        arguments,
        subject=replace(
            arguments.subject,
            guidance="stable-diffusion" if one.x0_bound == "none" else "deepfloyd",
            init=arguments.subject.init or "grey",
        ),
        model=_models(arguments.model, settings, model_dtype(given, device)),
        distillation=_distillation(arguments.distillation, settings),
        optimization=optimization,
    )


def _models(model: Model, settings: Preset, dtype: torch.dtype) -> Model:
    return replace(
        model,
        model=settings.stage_one.model,
        sr_model=settings.stage_two.model or "none",
        view_names=model.view_names or VIEW_NAMES,
        dtype=str(dtype).removeprefix("torch."),  # type: ignore[arg-type]
    )


def _distillation(distillation: Distillation, settings: Preset) -> Distillation:
    one, two = settings.stage_one, settings.stage_two
    shared = _shared(settings, "shared_timestep")
    return replace(
        distillation,
        guidance_scale=one.guidance_scale,
        sr_guidance_scale=two.guidance_scale,
        weighting=_shared(settings, "weighting"),
        timestep_per=None if shared is None else ("step" if shared else "picture"),
        x0_bound=_shared(settings, "x0_bound"),
        gradient_clamp=_shared(settings, "gradient_clamp"),
        sr_condition=two.sr_mode,
    )


def _shared(settings: Preset, name: str) -> Any:
    """A setting that one option gives to both stages; None where the preset has two."""
    one, two = (getattr(stage, name) for stage in (settings.stage_one, settings.stage_two))
    return one if settings.stage_two.model is None or one == two else None


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def resolved_settings(arguments: Arguments) -> Preset:
    """What the two stages do.

    Latent models have defaults of their own, whatever the preset: the presets are DeepFloyd's.

    Raises:
        UserError: ``--model`` cannot be had, or is not what ``--guidance`` asks for.
    """
    preset = STABLE_DIFFUSION if _is_latent(arguments) else PRESETS[arguments.model.preset]
    model, optimization = arguments.model, arguments.optimization
    distillation = arguments.distillation
    shared = {
        "views": optimization.views,
        "learning_rate": optimization.learning_rate,
        "weighting": distillation.weighting,
        "timesteps": distillation.timesteps and UniformTimesteps(*distillation.timesteps),
        "shared_timestep": distillation.timestep_per and distillation.timestep_per == "step",
        "x0_bound": distillation.x0_bound,
        "gradient_clamp": distillation.gradient_clamp,
    }
    stage_one = {
        "model": model.model,
        "steps": optimization.steps,
        "guidance_scale": distillation.guidance_scale,
        **shared,
    }
    stage_two = {
        "model": model.sr_model,
        "steps": optimization.sr_steps,
        "guidance_scale": distillation.sr_guidance_scale,
        "sr_mode": distillation.sr_condition,
        **shared,
    }
    two = dataclasses.replace(preset.stage_two, **_given(stage_two))
    if two.model == "none":
        two = dataclasses.replace(two, model=None)
    return Preset(dataclasses.replace(preset.stage_one, **_given(stage_one)), two)


def model_dtype(arguments: Arguments, device: torch.device) -> torch.dtype:
    """Precision of the models' weights."""
    if arguments.model.dtype != "auto":
        return DTYPES[arguments.model.dtype]
    return torch.float16 if device.type == "cuda" else torch.float32


def stage_record(stage: StageSettings) -> dict[str, Any]:
    """A stage's settings for ``run.json``; the sampler of its timesteps is named."""
    timesteps = stage.timesteps
    named = {"kind": type(timesteps).__name__, **vars(timesteps)}
    return {**dataclasses.asdict(stage), "timesteps": named}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _is_latent(arguments: Arguments) -> bool:
    name, asked = arguments.model.model, arguments.subject.guidance
    if name is None:
        return asked == "stable-diffusion"
    kind = check_stage(PipelineSource(name), 1)
    latent = kind not in PIXEL_KINDS
    if asked is not None and latent != (asked == "stable-diffusion"):
        raise UserError(
            f"--guidance {asked} needs a model of its kind, got --model {name}, which is {kind}; "
            f"leave --guidance out"
        )
    return latent
