"""θ, and the ways from it to maps that are grids: of pixels, of texels, of latents."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from sdslab.errors import UserError
from sdslab.kernels.philox import INITIALIZATION_STREAM, NoiseKey, philox_uniform
from sdslab.kernels.validation import require_layout, require_shape
from sdslab.shell.named_inputs import named_object
from sdslab.tensor_types import Diffused, Maps, Texels


class Parameterization(nn.Module, ABC):
    """θ, and the differentiable way from it to maps g(θ) [b, c, h, w].

    c is 3 for an image and 8 for a material; the maps' nominal range is [0, 1].
    """

    @abstractmethod
    def forward(self) -> Maps:
        """Returns g(θ), attached to the graph of θ."""


@final
class PixelGrid(Parameterization):
    """An explicit grid of values; nothing keeps it within [0, 1].

    Args:
        initial: θ at the start, [b, c, h, w], nominally in [0, 1]; copied.

    Source: "RGB pixels" of CasTex Figure 2 (arXiv 2504.06856).
    """

    def __init__(self, initial: Maps) -> None:
        super().__init__()
        require_layout("initial", initial, "b c h w")
        self.values = nn.Parameter(initial.detach().clone())

    def forward(self) -> Maps:
        return self.values

    @classmethod
    def grey(
        cls, shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32
    ) -> "PixelGrid":
        """Starts from 0.5 everywhere; ``shape`` is (b, c, h, w)."""
        require_shape("shape (b, c, h, w)", shape, 4)
        return cls(torch.full(shape, 0.5, dtype=dtype))

    @classmethod
    def uniform_noise(
        cls, shape: tuple[int, int, int, int], seed: int, dtype: torch.dtype = torch.float32
    ) -> "PixelGrid":
        """Starts from U[0, 1) noise; sample i of ``seed`` is the same in a batch of any size."""
        require_shape("shape (b, c, h, w)", shape, 4)
        key = NoiseKey(seed, step=0, sample=torch.arange(shape[0]), stream=INITIALIZATION_STREAM)
        values = philox_uniform(key, shape[1] * shape[2] * shape[3])
        return cls(values.view(shape).to(dtype))


@final
class TexelGrid(Parameterization):
    """A `PixelGrid` for textures: the channels of a texel lie side by side, as look-ups want them.

    Args:
        initial: g(θ) at the start, [h, w, c], nominally in [0, 1]; copied.
        scale: g(θ) = θ · scale, [c] powers of two, so that no product rounds. Adam moves θ by its
            learning rate in each channel: 1/2 halves how far one moves. None is 1 for all.
    """

    def __init__(self, initial: Texels, scale: Tensor | None = None) -> None:
        super().__init__()
        require_layout("initial", initial, "h w c")
        texels = initial.detach().clone(memory_format=torch.contiguous_format)
        self.texels = nn.Parameter(texels if scale is None else texels / scale.to(texels))
        self.register_buffer("scale", scale, persistent=False)
        self.scale: Tensor | None

    def forward(self) -> Maps:
        texels = self.texels if self.scale is None else self.texels * self.scale
        return texels.movedim(-1, 0)[None]


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


@dataclass(frozen=True, eq=False)
class MaterialSetup:
    """What a named function gets to make a material's parameterization from.

    Attributes:
        initial: valid maps [h, w, 8] that the run would start from.
        seed: of the run.
    """

    initial: Tensor
    seed: int


def own_parameterization(
    given: str, setup: object, shape: tuple[int, ...], like: Tensor
) -> Parameterization:
    """θ as the user's ``module:name`` makes it of a setup, on `like`'s device and of its dtype.

    Raises:
        UserError: it cannot be had, or does not give pictures of the shape.
    """
    theta = named_object(given, "parameterization")(setup)
    must = f"{given} must give a Parameterization"
    if not isinstance(theta, Parameterization) or not list(theta.parameters()):
        raise UserError(f"{must} with parameters, got {type(theta).__name__}; see examples/")
    theta = theta.to(like.device, like.dtype)
    if theta().shape != shape:
        raise UserError(f"{must} of shape {list(shape)}, got {list(theta().shape)}; see examples/")
    return theta
