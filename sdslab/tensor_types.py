"""Names for the tensor shapes that travel between modules (checked at run time in tests)."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from jaxtyping import Float, Int
from torch import Tensor

T = TypeVar("T")

Maps = Float[Tensor, "b c h w"]  # an image (c = 3, sRGB-encoded, nominally [0, 1]) or a material
Texels = Float[Tensor, "h w c"]  # the same as a texture, row 0 at v = 0
Image = Float[Tensor, "b 3 h w"]  # sRGB-encoded, nominally [0, 1]
Pictures = Float[Tensor, "b _ _ _"]  # beside z, in [0, 1], of a size and of channels of their own
Diffused = Float[Tensor, "b c *spatial"]  # z or z_t: pixels in [−1, 1], or scaled latents
PerSample = Float[Tensor, " b"]  # ᾱ, weights, losses
Timesteps = Int[Tensor, " b"]  # integers in [0, number of training timesteps)


def map_tensors(value: T, function: Callable[[Tensor], Tensor]) -> T:
    """Applies a function to a tensor, or to those of a dataclass, of the dataclasses in it too."""
    if isinstance(value, Tensor):
        result: Any = function(value)
        return result
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: map_tensors(getattr(value, f.name), function) for f in fields(value)}
        return replace(value, **parts)
    return value
