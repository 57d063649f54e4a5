"""Base of the parameterizations: a module whose parameters are θ and whose output is an image."""

from abc import ABC, abstractmethod

from torch import nn

from sdslab.tensor_types import Maps


class Parameterization(nn.Module, ABC):
    """θ, and the differentiable way from it to maps g(θ) [b, c, h, w].

    c is 3 for an image and 8 for a material; the maps' nominal range is [0, 1].
    """

    @abstractmethod
    def forward(self) -> Maps:
        """Returns g(θ), attached to the graph of θ."""
