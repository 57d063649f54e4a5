"""``module:name`` in a study: a parameterization, denoiser or objective of the user's own."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sdslab.denoisers.denoiser import Denoiser, require_denoiser
from sdslab.denoisers.noise_schedule import NoiseSchedule
from sdslab.errors import UserError
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
