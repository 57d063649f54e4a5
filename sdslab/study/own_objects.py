"""What a study's cell names: objectives of the table, and ``module:name`` of the user's own."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.denoiser import Denoiser, require_denoiser
from sdslab.denoisers.noise_schedule import NoiseSchedule, Weighting
from sdslab.distillation.objective_gradient import Predictor, distillation_gradient
from sdslab.distillation.objectives import OBJECTIVES
from sdslab.distillation.sds import own_objective, sds_gradient
from sdslab.errors import UserError
from sdslab.kernels import NoiseKey, SDSResult
from sdslab.shell.named_inputs import file_of, is_named_object, named_object


@dataclass(frozen=True, eq=False)
class CellSetup:
    """What the named function gets to make a parameterization or a denoiser from.

    Attributes:
        image: x*, [1, 3, size, size], sRGB-encoded, in [0, 1].
        z_star: the same in the diffusion space.
        schedule: of the noise in that space.
        seed: of the cell.
    """

    image: Tensor
    z_star: Tensor
    schedule: NoiseSchedule
    seed: int


def own_denoiser(given: str, setup: CellSetup) -> Denoiser:
    """The denoiser that the user's function makes.

    Raises:
        UserError: it gives something else.
    """
    denoiser: Any = named_object(given, "denoiser")(setup)
    try:
        require_denoiser(given, denoiser)
    except TypeError as error:
        raise UserError(str(error)) from error
    return denoiser


# Those that one exact model can serve, and the exact model of the one particle that θ is.
OBJECTIVE_NAMES = tuple(
    name for name, row in OBJECTIVES.items() if set(row.needs) <= {"conditional", "variational"}
)


def objective_function(given: str) -> Callable[..., SDSResult]:
    """The objective as a function with the signature of `sds_gradient`.

    It raises `UserError` where the user's own gives no `SDSResult` with a gradient like z.
    """
    if given == "sds":
        return sds_gradient
    own = own_objective(given)
    if own is not None:
        return own

    def of_table(
        z: Tensor, denoiser: Denoiser, t: Tensor, noise: NoiseKey, *, weighting: Weighting
    ) -> SDSResult:
        roles = {"conditional": Predictor(denoiser)}
        if "variational" in OBJECTIVES[given].needs:
            roles["variational"] = Predictor(DegenerateDenoiser(z, denoiser.schedule))
        return distillation_gradient(z, given, roles, t, noise, guidance=1.0, weighting=weighting)

    return of_table


def check_importable(option: str, given: str) -> None:
    """Refuses, before anything runs, a name that cannot be imported or that is no function."""
    if is_named_object(given) and not callable(named_object(given, option)):
        raise UserError(
            f"{option} must name a function or class, got another object, {given}; see "
            f"examples/own_study.py"
        )


def sources_of(named: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of each named module's file, for the key of what it makes."""
    files = {given: file_of(given) for given in named if is_named_object(given)}
    return {
        given: hashlib.sha256(Path(file).read_bytes()).hexdigest()
        for given, file in files.items()
        if file
    }
