"""θ is a latent of an autoencoder; the picture is its decoding."""

from collections.abc import Callable
from typing import final

from torch import nn

from sdslab.kernels.validation import require_layout
from sdslab.parameterizations.parameterization import Parameterization
from sdslab.tensor_types import Diffused, Maps


@final
class LatentGrid(Parameterization):
    """A grid of scaled latents, optimised directly: no gradient goes through the encoder.

    Args:
        initial: θ at the start, [b, latent channels, h / factor, w / factor]; copied.
        decode: from latents to pictures, such as ``LatentSpace.decode``. Its weights are no part
            of θ.
    """

    def __init__(self, initial: Diffused, decode: Callable[[Diffused], Maps]) -> None:
        super().__init__()
        require_layout("initial", initial, "b c h w")
        if not callable(decode):
            raise TypeError(
                f"decode must be a function, got a {type(decode).__name__}; pass space.decode"
            )
        self.latents = nn.Parameter(initial.detach().clone())
        self._decode = decode

    def forward(self) -> Maps:
        return self._decode(self.latents)
