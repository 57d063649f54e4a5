"""Base of the parameterizations, a module whose parameters are θ; and the user's own by name."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdslab.errors import UserError
from sdslab.shell.named_inputs import named_object
from sdslab.tensor_types import Maps


class Parameterization(nn.Module, ABC):
    """θ, and the differentiable way from it to maps g(θ) [b, c, h, w].

    c is 3 for an image and 8 for a material; the maps' nominal range is [0, 1].
    """

    @abstractmethod
    def forward(self) -> Maps:
        """Returns g(θ), attached to the graph of θ."""


@dataclass(frozen=True, eq=False)
class MaterialSetup:
    """What a named function gets to make a material's parameterization from.

    Attributes:
        initial: valid maps [h, w, 8] that the run would start from.
        seed: of the run.
    """

    initial: Tensor
    seed: int


def own_material(given: str, initial: Tensor, seed: int, device: torch.device) -> Parameterization:
    """`own_parameterization` of a material, from a `MaterialSetup`; its output is [1, 8, h, w]."""
    shape = (1, 8, *initial.shape[:2])
    setup, option = MaterialSetup(initial, seed), "--parameterization"
    return own_parameterization(given, option, setup, shape, initial.to(device))


def own_parameterization(
    given: str, option: str, setup: object, shape: tuple[int, ...], like: Tensor
) -> Parameterization:
    """θ as the user's ``module:name`` makes it of a setup, on `like`'s device and of its dtype.

    Raises:
        UserError: it cannot be had, is no `Parameterization`, or gives another shape.
    """
    make = named_object(given, option)
    if isinstance(make, nn.Module) or not callable(make):
        raise UserError(
            f"{option} {given} must be a function or class, got {type(make).__name__}; see "
            f"examples/"
        )
    theta, must = make(setup), f"{option} {given} must give a Parameterization"
    if not isinstance(theta, Parameterization) or not list(theta.parameters()):
        raise UserError(f"{must} with parameters, got {type(theta).__name__}; see examples/")
    theta = theta.to(like.device, like.dtype)
    with torch.no_grad():
        maps: object = theta()
    got = list(maps.shape) if isinstance(maps, Tensor) else f"a {type(maps).__name__}"
    if got != list(shape):
        raise UserError(f"{must} of shape {list(shape)}, got {got}; see examples/")
    return theta
