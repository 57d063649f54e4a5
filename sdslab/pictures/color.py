"""The sRGB transfer curve, and the two ways a picture can treat it."""

from typing import Literal

from torch import Tensor

ColorMode = Literal["srgb", "castex"]
"""Where colours are converted: "srgb" decodes albedo, shades in linear light and encodes the
radiance; "castex" converts nothing anywhere, as CasTex's code does (arXiv 2504.06856)."""

_LINEAR_END = 0.0031308  # the curve's straight part, in linear light
_ENCODED_END = 0.04045  # and encoded


def srgb_to_linear(x: Tensor) -> Tensor:
    """Decodes sRGB values of any shape to linear light.

    The power curve goes on above 1 and the straight part below 0: nothing is clamped, and the
    derivative is finite everywhere.

    Source: IEC 61966-2-1.
    """
    curve = ((x.clamp_min(_ENCODED_END) + 0.055) / 1.055) ** 2.4
    return curve.where(x > _ENCODED_END, x / 12.92)


def linear_to_srgb(x: Tensor) -> Tensor:
    """Encodes linear light of any shape as sRGB; the inverse of `srgb_to_linear`.

    Source: IEC 61966-2-1.
    """
    curve = 1.055 * x.clamp_min(_LINEAR_END) ** (1 / 2.4) - 0.055
    return curve.where(x > _LINEAR_END, x * 12.92)
