"""The ops that the kernel study times: ours, the same in plain torch, and what each must move."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.kernels import (
    SR_CONDITION_STREAM,
    NoiseKey,
    degenerate_sds_gradient,
    perturb,
    philox_normal,
    sds_gradient_from_output,
    sr_condition,
)
from sdslab.study.kernel_posterior import patch_posterior_problem
from sdslab.study.kernel_problem import Problem
from sdslab.study.kernel_specification import KernelCase


def perturb_problem(case: KernelCase, batch: int, side: int, device: torch.device) -> Problem:
    """x_t = √ᾱ x + √(1−ᾱ) ε."""
    x = _random(batch, case.channels, side, dtype=case.dtype, device=device)
    alpha_bar = _alpha_bar(batch, device)
    noise, eps = _noise(case, x)
    tensors = 3 if case.noise == "tensor" else 2
    return Problem(
        lambda: (perturb(x, alpha_bar, noise),),
        _eager_perturb,
        (x, alpha_bar, eps),
        (x, alpha_bar, eps if case.noise == "tensor" else None),
        tensors * _size(x),
        3 * x.numel(),
    )


def sds_gradient_problem(case: KernelCase, batch: int, side: int, device: torch.device) -> Problem:
    """CasTex's gradient from an ε̂ model: guided at scale 15, x̂_0 clamped, in x0-form."""
    x = _random(batch, case.channels, side, dtype="float32", device=device)
    rows = 2 * batch if case.guided else batch
    output = _random(rows, case.channels, side, dtype=case.dtype, device=device)
    alpha_bar, weight = _alpha_bar(batch, device), torch.ones(batch, device=device)
    noise, eps = _noise(case, x)
    scale = 15.0 if case.guided else 1.0
    arguments = (x, output, alpha_bar, weight, eps)

    def eager(*given: Tensor) -> tuple[Tensor, ...]:
        return _eager_sds_gradient(*given, scale=scale)

    return Problem(
        lambda: sds_gradient_from_output(
            x, output, alpha_bar, weight, noise, guidance_scale=scale, clamp=1.0
        ),
        eager,
        arguments,
        arguments,  # eager code keeps the noise that it drew for x_t
        (3 if case.noise == "tensor" else 2) * _size(x) + _size(output),
        (15 if case.guided else 12) * x.numel(),
    )


def degenerate_problem(case: KernelCase, batch: int, side: int, device: torch.device) -> Problem:
    """Eq. 3 of one image, in x0-form."""
    x = _random(batch, case.channels, side, dtype=case.dtype, device=device)
    target = _random(1, case.channels, side, dtype=case.dtype, device=device, seed=1)
    alpha_bar, weight = _alpha_bar(batch, device), torch.ones(batch, device=device)
    arguments = (x, target, weight)
    return Problem(
        lambda: degenerate_sds_gradient(x, target, alpha_bar, weight),
        _eager_degenerate,
        arguments,
        arguments,
        _size(x) + _size(target) + 4 * x.numel(),  # its gradient is float32
        4 * x.numel(),
    )


def sr_condition_problem(case: KernelCase, batch: int, side: int, device: torch.device) -> Problem:
    """A render of twice the condition's side, by way of a quarter of it."""
    small, large = side // 4, 2 * side
    render = torch.sigmoid(
        _random(batch, case.channels, large, dtype=case.dtype, device=device).float()
    ).to(getattr(torch, case.dtype))
    alpha_bar = _alpha_bar(batch, device)
    condition = render.new_empty(1).expand(batch, case.channels, side, side)
    noise, eps = _noise(case, condition)
    written = condition.numel() * (2 if case.noise == "tensor" else 1)
    planes = batch * case.channels
    if case.mode == "castex":
        read = planes * small**2
        resampling = 0
    else:
        read = render.numel()
        down = 2 * 16 * (small * large + small * small)
        resampling = planes * (down + 3 * side * (small + side))

    def eager(*given: Tensor) -> tuple[Tensor, ...]:
        return _eager_sr_condition(*given, mode=case.mode, side=side, small=small)

    return Problem(
        lambda: (
            sr_condition(render, alpha_bar, noise, mode=case.mode, size=side, low_size=small),
        ),
        eager,
        (render, alpha_bar, eps),
        (render, alpha_bar, eps if case.noise == "tensor" else None),
        (read + written) * render.element_size(),
        resampling + 5 * condition.numel(),
    )


OPERATIONS: dict[str, Callable[[KernelCase, int, int, torch.device], Problem]] = {
    "perturb": perturb_problem,
    "sds_gradient": sds_gradient_problem,
    "degenerate_sds_gradient": degenerate_problem,
    "sr_condition": sr_condition_problem,
    "patch_posterior": patch_posterior_problem,
}


def _eager_perturb(x: Tensor, alpha_bar: Tensor, eps: Tensor | None) -> tuple[Tensor, ...]:
    signal, sigma = _rates(alpha_bar, x)
    return (signal * x + sigma * (torch.randn_like(x) if eps is None else eps),)


def _eager_sds_gradient(
    x: Tensor, output: Tensor, alpha_bar: Tensor, weight: Tensor, eps: Tensor, *, scale: float
) -> tuple[Tensor, ...]:
    signal, sigma = _rates(alpha_bar, x)
    x_t = signal * x + sigma * eps
    output = output.to(x.dtype)
    if len(output) == 2 * len(x):
        unconditional, conditional = output.chunk(2)
        output = unconditional + scale * (conditional - unconditional)
    x0_hat = ((x_t - sigma * output) / signal).clamp(-1, 1)
    gradient = weight[:, None, None, None] * (x - x0_hat)
    loss = 0.5 * (gradient * (x - x0_hat)).flatten(1).sum(1)
    return gradient, loss, (~gradient.isfinite()).flatten(1).sum(1)


def _eager_degenerate(x: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    difference = x.to(weight.dtype) - target.to(weight.dtype)
    gradient = weight[:, None, None, None] * difference
    loss = 0.5 * (gradient * difference).flatten(1).sum(1)
    return gradient, loss, (~gradient.isfinite()).flatten(1).sum(1)


def _eager_sr_condition(
    render: Tensor, alpha_bar: Tensor, eps: Tensor | None, *, mode: str, side: int, small: int
) -> tuple[Tensor, ...]:
    if mode == "castex":
        low = F.interpolate(render, size=(small, small), mode="nearest")
        image = F.interpolate(low, size=(side, side), mode="nearest")
    else:
        low = F.interpolate(render, size=(small, small), mode="bilinear", antialias=True)
        image = F.interpolate(low, size=(side, side), mode="bilinear", align_corners=True)
    return _eager_perturb(2 * image - 1, alpha_bar, eps)


def _rates(alpha_bar: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    alpha_bar = alpha_bar[:, None, None, None]
    return alpha_bar.sqrt().to(x.dtype), (1 - alpha_bar).sqrt().to(x.dtype)


def _random(
    batch: int, channels: int, side: int, *, dtype: str, device: torch.device, seed: int = 0
) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(batch, channels, side, side, generator=generator, device=device)
    return x.to(getattr(torch, dtype))


def _alpha_bar(batch: int, device: torch.device) -> Tensor:
    return torch.linspace(0.1, 0.9, batch, dtype=torch.float64, device=device)


def _noise(case: KernelCase, x: Tensor) -> tuple[Tensor | NoiseKey, Tensor]:
    """The noise that ours takes, and the same as a tensor."""
    key = NoiseKey(0, 0, torch.arange(len(x), device=x.device), SR_CONDITION_STREAM)
    # In the precision of the computation, as ops draw it.
    eps = philox_normal(key, tuple(x.shape[1:]), device=x.device)
    if case.noise == "key":
        return key, eps
    return eps.to(x.dtype), eps.to(x.dtype)


def _size(x: Tensor) -> int:
    return x.numel() * x.element_size()
