"""``--objective``: what stage I distils from a prompt's model, instead of SDS."""

from typing import Any

from torch import Tensor

from sdslab.denoisers.denoiser import Condition, Denoiser
from sdslab.denoisers.noise_schedule import weighting_named
from sdslab.denoisers.pipelines import StageSettings
from sdslab.denoisers.prompts import Prompts
from sdslab.diffusion_guide import Distill
from sdslab.distillation.objective_gradient import Predictor, distillation_gradient
from sdslab.distillation.objectives import OBJECTIVES
from sdslab.distillation.sds import own_objective
from sdslab.errors import UserError, one_line
from sdslab.kernels import NoiseKey, SDSResult
from sdslab.shell.named_inputs import is_named_object
from sdslab.texture.arguments import Arguments

ROLES = ("conditional", "unconditional", "negative")  # that prompts can give
NAMES = tuple(
    name
    for name, objective in OBJECTIVES.items()
    if set(objective.needs) <= set(ROLES) and objective.noise != "fixed"
)


def check_objective(arguments: Arguments) -> None:
    """Refuses an objective that stage I cannot have, and options that it has no use for.

    Raises:
        UserError: says what must hold.
    """
    name, distillation = arguments.distillation.objective, arguments.distillation
    if is_named_object(name):
        own_objective(name)
        return
    if name not in NAMES:
        raise UserError(
            f"--objective must be one of {', '.join(NAMES)}, or MODULE:NAME, got {one_line(name)!r}"
        )
    for option, value in (
        ("--perp-neg", distillation.perp_neg),
        ("--x0-bound", distillation.x0_bound not in (None, "none")),
        ("--graph", arguments.model.graph),
    ):
        if value:
            raise UserError(f"{option} is for --objective sds, got {name}; leave it out")
    if needs_negative(name) and not arguments.model.negative_prompt.strip():
        raise UserError(
            f"--objective {name} needs --negative-prompt, what the pictures must not look like "
            f"(bridge: what they look like so far), got none"
        )


def needs_negative(name: str) -> bool:
    """Whether the negative prompt is a role of its own, beside the empty one."""
    return name in OBJECTIVES and "negative" in OBJECTIVES[name].needs


def settings_of(name: str) -> dict[str, Any]:
    """What an objective of the table says of stage I, unless options say otherwise."""
    if name == "sds" or name not in OBJECTIVES:
        return {"objective": name}
    objective = OBJECTIVES[name]
    return {
        "objective": name,
        "guidance_scale": objective.guidance,
        "timesteps": objective.timesteps,
        "weighting": objective.weighting,
        "x0_bound": "none",
    }


def distil(
    settings: StageSettings,
    model: Denoiser,
    guided: Denoiser,
    prompts: Prompts,
    clamp: float | None,
    *,
    low_memory: bool,
) -> Distill | None:
    """The gradient of stage I; None is SDS.

    Args:
        settings: of the stage.
        model: without guidance.
        guided: with it, for a function of the user's own.
        prompts: rows of the views, of the negative prompt where it is a role, and the empty one.
        clamp: of x̂_0, for a function of the user's own.
        low_memory: run the roles one after the other.
    """
    name, weighting = settings.objective, weighting_named(settings.weighting)
    if name == "sds":
        return None
    function = own_objective(name)
    if function is not None:

        def own(
            z: Tensor, t: Tensor, noise: NoiseKey, condition: Condition, progress: float
        ) -> SDSResult:
            del progress
            with model.loaded():
                return function(
                    z, guided, t, noise, weighting=weighting, condition=condition, clamp=clamp
                )

        return own
    rows = {"unconditional": prompts.unconditional}
    if needs_negative(name):
        rows["negative"] = prompts.unconditional - 1

    def of_table(
        z: Tensor, t: Tensor, noise: NoiseKey, condition: Condition, progress: float
    ) -> SDSResult:
        predictors = {"conditional": Predictor(model, condition)} | {
            role: Predictor(model, condition.with_prompt(row)) for role, row in rows.items()
        }
        with model.loaded():
            return distillation_gradient(
                z, name, predictors, t, noise, progress=progress,
                guidance=settings.guidance_scale, weighting=weighting, low_memory=low_memory,
            )  # fmt: skip

    return of_table
