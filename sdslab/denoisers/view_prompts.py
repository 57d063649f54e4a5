"""A prompt for each side of the object: what a view shows is said in words.

Source: CasTex's public code (arXiv 2504.06856), but by the azimuth around the *object*: the object
stays where it is here and the light turns, so a view's own azimuth is that.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

VIEW_NAMES = ("front view", "side view", "backside view", "top view", "bottom view")
FRONT, SIDE, BACK, TOP, BOTTOM = range(5)
STEEP_DEG = 45.0
# The sides that a view must not show, for each of the five: what a model likes to put everywhere.
OTHER_SIDES = ((SIDE, BACK), (FRONT, BACK), (FRONT, SIDE), (FRONT, BACK), (FRONT, BACK))


def view_prompts(prompt: str, names: Sequence[str] = VIEW_NAMES) -> list[str]:
    """The prompt with each of five names after a comma; an empty name adds nothing."""
    if len(names) != len(VIEW_NAMES):
        raise ValueError(f"names must be {len(VIEW_NAMES)}, got {len(names)}")
    return [f"{prompt}, {name.strip()}" if name.strip() else prompt for name in names]


def view_of(eye: Tensor, pose: Tensor | None = None) -> Tensor:
    """Which of `VIEW_NAMES` each eye sees.

    Args:
        eye: [b, 3] around the origin in world space; azimuth φ = 90° is +Z, the front.
        pose: [b, 3, 3], how the object is turned, or None: the side is the object's, not the
            world's.

    Returns:
        [b] int64: top at an elevation of 45° and above, bottom at −45° and below; else front within
        45° of azimuth 90°, back within 45° of 270°, and side.
    """
    if pose is not None:
        eye = (pose.mT @ eye[..., None])[..., 0]
    x, y, z = eye.double().unbind(-1)
    elevation = torch.rad2deg(torch.atan2(y, torch.hypot(x, z)))
    azimuth = torch.rad2deg(torch.atan2(z, x)) % 360
    view = torch.full_like(azimuth, SIDE, dtype=torch.int64)
    view[(azimuth >= 45) & (azimuth <= 135)] = FRONT
    view[(azimuth >= 225) & (azimuth <= 315)] = BACK
    view[elevation >= STEEP_DEG] = TOP
    view[elevation <= -STEEP_DEG] = BOTTOM
    return view
