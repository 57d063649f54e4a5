"""θ is the picture itself, or the texture: one number per pixel (or texel) and channel."""

from typing import final

import torch
from torch import Tensor, nn

from sdslab.kernels.philox import INITIALIZATION_STREAM, NoiseKey, philox_uniform
from sdslab.kernels.validation import require_layout, require_shape
from sdslab.parameterizations.parameterization import Parameterization
from sdslab.tensor_types import Maps, Texels


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
