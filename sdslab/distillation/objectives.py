"""Score-distillation objectives as one table: predictions compared, noise, t, and where.

Each is g = w(t) Σ_i c_i ε̂_i of predictions at one x_t = √ᾱ z + √(1-ᾱ) n, the noise n among them
(or √((1-ᾱ)/ᾱ) times that, in x0-form). s is the scale of ε_u + s (ε_c - ε_u); codes that write
ε_c + s (ε_c - ε_u) have s - 1. Gradients are neither divided by the batch nor by two.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor

from sdslab.denoisers.noise_schedule import (
    FallingTimestep,
    SwitchedTimesteps,
    TimestepSampler,
    UniformTimesteps,
)
from sdslab.distillation.inversion import Inversion
from sdslab.errors import UserError
from sdslab.tensor_types import Timesteps

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
