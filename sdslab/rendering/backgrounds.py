"""What lies behind the object; drawn once a step and shared by every render of that step."""

from typing import Literal

import torch
from torch import Tensor

from sdslab.kernels.philox import NoiseKey, philox_uniform

BACKGROUND_STREAM = 5  # of the counter-based generator

Background = Literal["white", "black", "grey", "random", "shared", "checker"]
_SOLID = {"white": 1.0, "black": 0.0, "grey": 0.5}


def sample_background(
    kind: Background,
    seed: int,
    step: int,
    batch: int,
    resolution: tuple[int, int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draws backgrounds, sRGB-encoded: sample i of step s depends on (seed, s, i) alone.

    Args:
        kind: a solid colour, "random" (one colour a view), "shared" (one colour for all views, as
            CasTex has it) or "checker" (two colours a view, squares of a random size).
        seed: of the run.
        step: of the optimisation.
        batch: number of views.
        resolution: (height, width).
        device: of the result; the few numbers that are drawn are copied there, not the pictures.

    Returns:
        [batch, 3, height, width] in [0, 1].
    """
    if kind in _SOLID:
        solid = torch.full((1, 3, 1, 1), _SOLID[kind], device=device)
        return solid.expand(batch, 3, *resolution)
    sample = torch.zeros(batch, dtype=torch.int64) if kind == "shared" else torch.arange(batch)
    key = NoiseKey(seed, step, sample, BACKGROUND_STREAM)
    numbers = philox_uniform(key, 7).float().to(device)
    first, second = numbers[:, :3, None, None], numbers[:, 3:6, None, None]
    if kind in ("random", "shared"):
        return first.expand(batch, 3, *resolution)
    squares = 4 + (12 * numbers[:, 6]).floor().view(-1, 1, 1, 1)  # 4 to 15 along the picture's side
    rows, columns = (
        (torch.arange(size, device=device) + 0.5) / max(resolution) for size in resolution
    )
    parity = (rows[:, None] * squares).floor() + (columns * squares).floor()
    return torch.where(parity.remainder(2) == 0, first, second)
