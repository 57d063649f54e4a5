"""A command line with every default filled in: what runs, what is recorded and what is compared."""

import dataclasses
from dataclasses import replace
from typing import Any

import torch

from sdslab.denoisers.noise_schedule import UniformTimesteps
from sdslab.denoisers.pipelines import (
    PRESETS,
    STABLE_DIFFUSION,
    PipelineSource,
    Preset,
    StageSettings,
)
from sdslab.denoisers.prompts import VIEW_NAMES
from sdslab.denoisers.unet import PIXEL_KINDS, check_stage
from sdslab.errors import UserError
from sdslab.exemplar_texturing.pyramid import ExemplarConfig
from sdslab.rendering.backends import renderer_for
from sdslab.texture.arguments import DEFAULT_EXEMPLAR, Arguments, GuidanceName, Optimization
from sdslab.texture.objective import settings_of

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
        rendering = replace(rendering, renderer=renderer_for(device))
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
    filled: dict[str, dict[str, Any]] = {"model": {}, "distillation": {}, "optimization": {}}
    for section, option, setting, stages in _STAGE_OPTIONS:
        if option == "timesteps" or (option == "sr_steps" and two.model is None):
            continue  # which say what they say
        values = [getattr(stage, setting) for stage in (one, two)][stages]
        value = values[0] if two.model is None or values[0] == values[-1] else None
        if option == "timestep_per" and value is not None:
            value = "step" if value else "picture"
        filled[section][option] = "none" if option == "sr_model" and value is None else value
    filled["model"] |= {
        "view_names": arguments.model.view_names or VIEW_NAMES,
        "dtype": str(model_dtype(given, device)).removeprefix("torch."),
    }
    guidance = "stable-diffusion" if _is_latent(given) else "deepfloyd"
    subject = arguments.subject
    return replace(
        arguments,
        subject=replace(subject, guidance=guidance, init=subject.init or "grey"),
        **{name: replace(getattr(arguments, name), **values) for name, values in filled.items()},
    )


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Options that set something of the stages: section, name, the setting, and of which stages. In a
# resolved command line, an option of both is None where the preset has two different values.
_ONE, _TWO, _BOTH = slice(0, 1), slice(1, 2), slice(0, 2)
_STAGE_OPTIONS = (
    ("model", "model", "model", _ONE),
    ("model", "sr_model", "model", _TWO),
    ("optimization", "steps", "steps", _ONE),
    ("optimization", "sr_steps", "steps", _TWO),
    ("optimization", "views", "views", _BOTH),
    ("optimization", "learning_rate", "learning_rate", _BOTH),
    ("distillation", "guidance_scale", "guidance_scale", _ONE),
    ("distillation", "sr_guidance_scale", "guidance_scale", _TWO),
    ("distillation", "weighting", "weighting", _BOTH),
    ("distillation", "timesteps", "timesteps", _BOTH),
    ("distillation", "timestep_per", "shared_timestep", _BOTH),
    ("distillation", "x0_bound", "x0_bound", _BOTH),
    ("distillation", "gradient_clamp", "gradient_clamp", _BOTH),
    ("distillation", "sr_condition", "sr_mode", _TWO),
)


def resolved_settings(arguments: Arguments) -> Preset:
    """What the two stages do.

    Latent models have defaults of their own, whatever the preset: the presets are DeepFloyd's.

    Raises:
        UserError: ``--model`` cannot be had, or is not what ``--guidance`` asks for.
    """
    preset = STABLE_DIFFUSION if _is_latent(arguments) else PRESETS[arguments.model.preset]
    given: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for section, option, setting, stages in _STAGE_OPTIONS:
        value = getattr(getattr(arguments, section), option)
        if value is None:
            continue
        if option == "timesteps":
            value = UniformTimesteps(*value)
        elif option == "timestep_per":
            value = value == "step"
        for values in given[stages]:
            values[setting] = None if option == "sr_model" and value == "none" else value
    of_objective = settings_of(arguments.distillation.objective)
    return Preset(
        replace(preset.stage_one, **(of_objective | given[0])),
        replace(preset.stage_two, **given[1]),
    )


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
