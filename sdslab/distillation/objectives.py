"""Score-distillation objectives as one table: predictions compared, noise, t, and where.

Each is g = w(t) Σ_i c_i ε̂_i of predictions at one x_t = √ᾱ z + √(1-ᾱ) n, the noise n among them
(or √((1-ᾱ)/ᾱ) times that, in x0-form). s is the scale of ε_u + s (ε_c - ε_u); codes that write
ε_c + s (ε_c - ε_u) have s - 1. Gradients are neither divided by the batch nor by two.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from sdslab.denoisers.denoiser import Condition, Denoiser, require_denoiser
from sdslab.denoisers.noise_schedule import (
    FallingTimestep,
    SwitchedTimesteps,
    TimestepSampler,
    UniformTimesteps,
    Weighting,
    timesteps_for,
    weighting_named,
)
from sdslab.distillation.inversion import Inversion, inverted, reversed_noise
from sdslab.errors import UserError
from sdslab.kernels import NoiseKey, PredictionType, SDSResult, perturb, sds_gradient_from_output
from sdslab.kernels.noising import signal_and_noise_rates
from sdslab.kernels.philox import checked_noise, drawn_noise
from sdslab.kernels.sds_gradients import guided_output, x0_from
from sdslab.kernels.validation import require_samples
from sdslab.tensor_types import Diffused, PerSample, Timesteps

Role = Literal["conditional", "unconditional", "negative", "variational"]
"""Whose prediction: of the prompt, of none, of a negative (or source) prompt, of the renders."""


@dataclass(frozen=True, eq=False)
class Moment:
    """What coefficients may depend on.

    Attributes:
        s: guidance scale.
        t: [b].
        progress: step / steps, within [0, 1].
    """

    s: float
    t: Timesteps
    progress: float


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
Coefficients = Callable[[Moment], Mapping[str, float | Tensor]]


@final
@dataclass(frozen=True, eq=False)
class Objective:
    """One row of the table.

    Attributes:
        source: paper, formula, and what the official code says of t and s.
        coefficients: by role, and of the "noise"; a number or [b]. Roles of the number 0 are not
            asked.
        timesteps: where t is drawn.
        guidance: s of the official code, in our convention.
        weighting: a name of `WEIGHTINGS`.
        noise: "fresh" for each step; "fixed", the same at every step (on a mesh: to the surface);
            "reversed" by one step of the model's flow; or inverted by the model.
        needs: roles without which it is not defined; guidance alone can do without (s = 1).
    """

    source: str
    coefficients: Coefficients
    timesteps: TimestepSampler
    guidance: float
    weighting: str = "epsilon_dreamfusion"
    noise: Literal["fresh", "fixed", "reversed"] | Inversion = "fresh"
    needs: tuple[Role, ...] = ("conditional",)


def _guided(m: Moment) -> dict[str, float | Tensor]:
    return {"conditional": m.s, "unconditional": 1 - m.s}


def _sds(m: Moment) -> dict[str, float | Tensor]:
    return _guided(m) | {"noise": -1.0}


def _csd(m: Moment) -> dict[str, float | Tensor]:
    return {"conditional": m.s, "unconditional": -m.s}


def _csd_annealed(m: Moment) -> dict[str, float | Tensor]:
    towards = m.progress * m.s / 2
    return {"conditional": m.s, "unconditional": towards - m.s, "negative": -towards}


def _nfsd(m: Moment) -> dict[str, float | Tensor]:
    return _guided(m) | {"negative": -(m.t >= 200).double()}


def _bridge(m: Moment) -> dict[str, float | Tensor]:
    if m.progress < 0.5:
        return _sds(Moment(40.0, m.t, m.progress))
    return {"conditional": m.s, "negative": -m.s}


def _vsd(m: Moment) -> dict[str, float | Tensor]:
    return _guided(m) | {"variational": -1.0}


def _ism(m: Moment) -> dict[str, float | Tensor]:
    return _guided(m) | {"interval": -1.0}


_PAIR: tuple[Role, ...] = ("conditional", "unconditional")
_ALL_T = UniformTimesteps()

OBJECTIVES: dict[str, Objective] = {
    "sds": Objective(
        "Poole et al. 2022, DreamFusion Eq. 3 (arXiv 2209.14988): ε_u + s (ε_c - ε_u) - n",
        _sds,
        _ALL_T,
        100.0,
    ),
    "csd": Objective(
        "Yu et al. 2023, Classifier Score Distillation (arXiv 2310.19415): s (ε_c - ε_u)",
        _csd,
        UniformTimesteps(20, 500),
        7.5,
        needs=_PAIR,
    ),
    "csd_annealed": Objective(
        "The same with a negative prompt, whose share grows: s (ε_c - ε_u / 2 - ε_neg / 2) at last",
        _csd_annealed,
        UniformTimesteps(20, 500),
        7.5,
        needs=(*_PAIR, "negative"),
    ),
    "nfsd": Objective(
        "Katzir et al. 2023, Noise-Free Score Distillation (arXiv 2310.17590): s (ε_c - ε_u), plus "
        "ε_u where t < 200, else ε_u - ε_neg",
        _nfsd,
        _ALL_T,
        7.5,
        needs=(*_PAIR, "negative"),
    ),
    "bridge": Objective(
        "McAllister et al. 2024, SDS-Bridge (arXiv 2406.09417): SDS at s = 40 for half of the run, "
        "then s (ε_c - ε_src), the negative prompt saying what the renders look like",
        _bridge,
        _ALL_T,
        40.0,
        needs=(*_PAIR, "negative"),
    ),
    "vsd": Objective(
        "Wang et al. 2023, ProlificDreamer (arXiv 2305.16213): ε_u + s (ε_c - ε_u) - ε_φ, with φ "
        "the model of the renders themselves; after a fifth of the run t < 500",
        _vsd,
        SwitchedTimesteps((20, 980), (20, 500), 0.2),
        7.5,
        needs=("conditional", "variational"),
    ),
    "ism": Objective(
        "Liang et al. 2023, LucidDreamer (arXiv 2311.11284): ε_u + s (ε_c - ε_u) at x_t less ε_u "
        "at the last point before t of an inversion, 65 earlier (80 to 50 in its code)",
        _ism,
        UniformTimesteps(20, 500),
        7.5,
        weighting="epsilon_ism",
        noise=Inversion(5, interval=65),
        needs=("conditional",),
    ),
    "sdi": Objective(
        "Lukoianov et al. 2024, SDI (arXiv 2405.15891): z - x̂_0 on noise that the model itself "
        "leads to; t falls from 980 to 250",
        _sds,
        FallingTimestep(980, 250),
        8.5,
        weighting="x0_unit",
        noise=Inversion(10, guidance=-6.5, eta=0.3),
    ),
    "hifa": Objective(
        "Zhu et al. 2023, HiFA (arXiv 2305.18766): z - x̂_0, t falling with the square root of the "
        "progress; its second residual, of the decoded picture, is none in pixel space",
        _sds,
        FallingTimestep(980, 20, power=0.5),
        100.0,
        weighting="x0_unit",
    ),
    "cfd": Objective(
        "Yan et al. 2025, Consistent Flow Distillation (arXiv 2501.05445): SDS on noise fixed to "
        "what is painted, t falling from 980 to 20",
        _sds,
        FallingTimestep(980, 20),
        8.0,
        noise="fixed",
    ),
    "rfds": Objective(
        "Yang et al. 2024, RFDS (arXiv 2406.03293): v̂ - (n - z) of a flow model",
        _sds,
        _ALL_T,
        50.0,
        weighting="x0_flow",
    ),
    "rfds_rev": Objective(
        "The same on noise reversed by one step of the flow",
        _sds,
        _ALL_T,
        50.0,
        weighting="x0_flow",
        noise="reversed",
    ),
}


def objective_named(name: Objective | str) -> Objective:
    """Looks an objective up by its name in ``OBJECTIVES``; an `Objective` is itself.

    Raises:
        UserError: there is none of that name.
    """
    if isinstance(name, Objective):
        return name
    if name not in OBJECTIVES:
        raise UserError(f"objective must be one of {', '.join(OBJECTIVES)}, got {name!r}")
    return OBJECTIVES[name]


def check_roles(name: str, roles: Collection[str]) -> None:
    """Refuses an objective that needs a prediction which nothing gives.

    Raises:
        UserError: says which.
    """
    missing = [role for role in objective_named(name).needs if role not in roles]
    if missing:
        raise UserError(
            f"objective {name} needs predictions of the roles {', '.join(missing)} as well, got "
            f"{', '.join(roles)}; give them, or take an objective that does without: "
            f"{', '.join(n for n, o in OBJECTIVES.items() if all(r in roles for r in o.needs))}"
        )


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
    outputs, prediction_type = _predictions(predictors, roles, extra, z_t, t, alpha_bar)
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
    alpha_bar: Tensor,
):
    """Outputs stacked in the order of the roles, [k·b, …], and what they predict.

    A denoiser of several roles is run once. Where types differ, all are converted to ε̂.
    """
    found: dict[str, tuple[Tensor, PredictionType]] = {
        role: (eps_hat, "epsilon") for role, eps_hat in extra.items() if role in roles
    }
    by_denoiser: dict[int, list[str]] = {}
    for role in roles:
        if role not in extra:
            by_denoiser.setdefault(id(predictors[role].denoiser), []).append(role)
    for together in by_denoiser.values():
        members = [predictors[role] for role in together]
        n = len(members)
        conditions = [member.condition for member in members]
        condition = conditions[0]
        for other in conditions[1:]:
            condition = condition.and_then(other) if condition and other else condition
        prediction = members[0].denoiser.checked_prediction(
            torch.cat([z_t] * n), torch.cat([t] * n), condition
        )
        output = guided_output(prediction.output, torch.cat([z_t] * n), prediction.guidance_scale)
        parts = output.chunk(n)
        found |= {
            role: (part, prediction.prediction_type)
            for role, part in zip(together, parts, strict=True)
        }
    types = {kind for _, kind in found.values()}
    if len(types) == 1:
        return torch.cat([found[role][0] for role in roles]), types.pop()
    signal, sigma = signal_and_noise_rates(alpha_bar, z_t)
    converted = []
    for role in roles:
        output, kind = found[role]
        if kind != "epsilon":
            x0_hat = x0_from(kind, output.to(signal.dtype), z_t.to(signal.dtype), signal, sigma)
            output = (z_t - signal * x0_hat) / sigma
        converted.append(output)
    return torch.cat(converted), "epsilon"
