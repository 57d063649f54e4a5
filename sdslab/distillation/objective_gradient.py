"""The gradient of any objective of the table, from the predictions of its roles."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sdslab.denoisers.denoiser import Condition, Denoiser, require_denoiser
from sdslab.denoisers.noise_schedule import Weighting, timesteps_for, weighting_named
from sdslab.distillation.inversion import Inversion, inverted, reversed_noise
from sdslab.distillation.objectives import Moment, Objective, objective_named
from sdslab.errors import UserError
from sdslab.kernels import NoiseKey, PredictionType, SDSResult, perturb, sds_gradient_from_output
from sdslab.kernels.noising import signal_and_noise_rates
from sdslab.kernels.philox import checked_noise, drawn_noise
from sdslab.kernels.sds_gradients import guided_output, x0_from
from sdslab.kernels.validation import require_samples
from sdslab.tensor_types import Diffused, PerSample, Timesteps


@dataclass(frozen=True, eq=False)
class Predictor:
    """A denoiser and the condition that it is asked under.

    Attributes:
        denoiser: any; those of several roles may be one, which is then run once for all.
        condition: of the b samples.
    """

    denoiser: Denoiser
    condition: Condition | None = None


Predictors = Mapping[str, Predictor]
"""By `Role`."""


@torch.no_grad()
def distillation_gradient(
    z: Diffused,
    objective: Objective | str,
    predictors: Predictors,
    t: Timesteps | int,
    noise: Tensor | NoiseKey,
    *,
    progress: float = 0.0,
    guidance: float | None = None,
    weighting: Weighting | str | None = None,
    low_memory: bool = False,
) -> SDSResult:
    """The gradient of any objective with respect to z; no graph is made.

    Args:
        z: clean samples [b, c, *spatial] in the diffusion space.
        objective: or its name.
        predictors: who predicts what; all on one noise schedule.
        t: a timestep per sample, [b], or one for all; an objective's ``timesteps`` draws it.
        noise: n like z, or its key. The caller keeps it where the objective's is "fixed"; what is
            inverted or reversed starts from it.
        progress: step / steps, for coefficients that change on the way.
        guidance: s; the objective's own where None. With s = 1 no unconditional role is asked.
        weighting: w(t) and its form, or a name; the objective's own where None.
        low_memory: run roles of one denoiser one after the other instead of in one batch.

    Returns:
        As `sds_gradient`; the loss is half the weighted square of the residual, whose derivative
        the gradient is only where the residual is z - x̂_0.

    Raises:
        UserError: a role is needed that no predictor has, or a name is unknown.
        ValueError: shapes or values do not fit.
    """
    name = objective if isinstance(objective, str) else "given"
    objective = objective_named(objective)
    require_samples("z", z, min_dims=2)
    t = timesteps_for(t, z)
    s = objective.guidance if guidance is None else guidance
    coefficients = {
        role: c
        for role, c in objective.coefficients(Moment(s, t, progress)).items()
        if isinstance(c, Tensor) or c != 0
    }
    asked = [role for role in coefficients if role not in ("noise", "interval")]
    _require_roles(name, objective, asked, predictors, s)
    weighting = weighting_named(objective.weighting if weighting is None else weighting)
    schedule = predictors["conditional"].denoiser.schedule
    alpha_bar = schedule.alpha_bar(t)

    def led(scale: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x_t, t: _guided_x0(predictors, x_t, t, scale)

    extra = {}
    if isinstance(objective.noise, Inversion):
        model = led(objective.noise.guidance)
        noise, interval = inverted(z, t, schedule, model, objective.noise, noise)
        extra = {"interval": interval}
    elif objective.noise == "reversed":
        noise = reversed_noise(z, t, schedule, led(s), noise)
    elif z.device.type == "cpu":
        noise = drawn_noise(checked_noise(noise, z), z)  # to draw it twice costs more there
    z_t = perturb(z, alpha_bar, noise)
    roles = [role for role in coefficients if role != "noise"]
    outputs, prediction_type = _predictions(predictors, roles, extra, z_t, t, low_memory=low_memory)
    rows = [*(coefficients[role] for role in roles), coefficients.get("noise", 0.0)]
    return sds_gradient_from_output(
        z,
        outputs,
        alpha_bar,
        weighting(alpha_bar),
        noise,
        coefficients=torch.stack([_for_each(row, alpha_bar) for row in rows]),
        prediction_type=prediction_type,
        form=weighting.form,
    )


def _require_roles(
    name: str, objective: Objective, asked: list[str], predictors: Predictors, s: float
) -> None:
    for role, predictor in predictors.items():
        require_denoiser(f"the {role} predictor", predictor.denoiser)
    missing = [role for role in dict.fromkeys((*objective.needs, *asked)) if role not in predictors]
    if missing:
        hint = "; s = 1 asks no unconditional one" if missing == ["unconditional"] else ""
        raise UserError(
            f"objective {name} at s = {s:g} needs {', '.join(missing)} predictions, got "
            f"{', '.join(predictors) or 'none'}{hint}"
        )


def _for_each(coefficient: float | Tensor, alpha_bar: PerSample) -> Tensor:
    if isinstance(coefficient, Tensor):
        return coefficient.to(alpha_bar)
    return torch.full_like(alpha_bar, coefficient)


def _guided_x0(predictors: Predictors, x_t: Tensor, t: Tensor, scale: float) -> Tensor:
    """x̂_0 of u + s (c - u), with whichever of the two roles the scale needs and there is."""
    conditional = predictors["conditional"]
    unconditional = predictors.get("unconditional", conditional)
    if scale == 1 or unconditional is conditional:
        return conditional.denoiser.x0_hat(x_t, t, conditional.condition)
    base = unconditional.denoiser.x0_hat(x_t, t, unconditional.condition)
    if scale == 0:
        return base
    return base + scale * (conditional.denoiser.x0_hat(x_t, t, conditional.condition) - base)


def _predictions(
    predictors: Predictors,
    roles: list[str],
    extra: Mapping[str, Tensor],
    z_t: Tensor,
    t: Tensor,
    *,
    low_memory: bool,
) -> tuple[Tensor, PredictionType]:
    """Outputs stacked in the order of the roles, [k·b, …], and what they predict.

    A denoiser of several roles is run once. Where types differ, all are converted to ε̂.
    """
    found: dict[str, tuple[Tensor, PredictionType]] = {}
    found |= {role: (extra[role], "epsilon") for role in roles if role in extra}
    by_denoiser: dict[object, list[str]] = {}
    for role in roles:
        if role not in extra:
            member = predictors[role]
            # A batch has a condition for each of its samples, or none at all.
            key = role if low_memory else (id(member.denoiser), member.condition is None)
            by_denoiser.setdefault(key, []).append(role)
    for together in by_denoiser.values():
        denoiser, n = predictors[together[0]].denoiser, len(together)
        condition = predictors[together[0]].condition
        for role in together[1:]:
            other = predictors[role].condition
            if condition is not None and other is not None:
                condition = condition.and_then(other)
        x_t = torch.cat([z_t] * n)
        prediction = denoiser.checked_prediction(x_t, torch.cat([t] * n), condition)
        output = guided_output(prediction.output, x_t, prediction.guidance_scale)
        for role, part in zip(together, output.chunk(n), strict=True):
            found[role] = (part, prediction.prediction_type)
    first = found[roles[0]][1]
    if all(kind == first for _, kind in found.values()):
        return torch.cat([found[role][0] for role in roles]), first
    alpha_bar = predictors["conditional"].denoiser.schedule.alpha_bar(t)
    signal, sigma = signal_and_noise_rates(alpha_bar, z_t)
    converted = []
    for role in roles:
        output, kind = found[role]
        if kind != "epsilon":
            x0_hat = x0_from(kind, output.to(signal.dtype), z_t.to(signal.dtype), signal, sigma)
            output = (z_t - signal * x0_hat) / sigma
        converted.append(output)
    return torch.cat(converted), "epsilon"
