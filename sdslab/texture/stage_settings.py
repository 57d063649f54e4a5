"""The two stages' settings: a preset's, with what the command line says in its place."""

import dataclasses
from typing import Any

import torch

from sdslab.denoisers.model_table import PRESETS, STABLE_DIFFUSION, Preset, StageSettings
from sdslab.denoisers.noise_schedule import UniformTimesteps
from sdslab.denoisers.pipeline_source import PipelineSource
from sdslab.denoisers.unet import PIXEL_KINDS, check_stage
from sdslab.errors import UserError
from sdslab.texture.arguments import Arguments

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
    """Of the models' weights."""
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
