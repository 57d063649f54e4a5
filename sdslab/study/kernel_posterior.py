"""The patch posterior in the kernel study: ours, and three ways to write it in torch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.kernels.patch_posterior import patch_posterior
from sdslab.study.kernel_problem import Problem
from sdslab.study.kernel_specification import KernelCase

# Queries that a user would take at a time, lest the logits fill the memory.
_CHUNK = 1024


def patch_posterior_problem(
    case: KernelCase, batch: int, side: int, device: torch.device
) -> Problem:
    """A query of `channels` coordinates for each of batch × side² pixels, against `keys` keys."""
    n, k, r = batch * side**2, case.keys, case.channels
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator(device).manual_seed(0)
    keys = torch.randn(k, r, generator=generator, device=device) / r**0.5
    noise = torch.randn(n, r, generator=generator, device=device)
    alpha_bar = torch.linspace(0.1, 0.9, n, device=device)
    origin = torch.arange(n, device=device) % k
    y = alpha_bar.sqrt()[:, None] * keys[origin] + (1 - alpha_bar).sqrt()[:, None] * noise
    arguments = (y.to(dtype), keys.to(dtype), alpha_bar)
    return Problem(
        lambda: (patch_posterior(*arguments),),
        by_products,
        arguments,
        arguments,
        sum(x.numel() * x.element_size() for x in (*arguments, arguments[0])),
        n * k * (4 * r + 8),  # two products, the logits' terms and the softmax
        {
            "sdpa": lambda: by_attention(*arguments),
            "cdist": lambda: by_distances(*arguments),
        },
    )


def by_products(y: Tensor, keys: Tensor, alpha_bar: Tensor) -> tuple[Tensor, ...]:
    """The square expanded into a product of matrices, some queries at a time."""
    squares = keys.square().sum(1) / 2
    means = []
    for some, a in zip(y.split(_CHUNK), alpha_bar.to(y.dtype)[:, None].split(_CHUNK), strict=True):
        logits = (a.sqrt() * (some @ keys.T) - a * squares) / (1 - a)
        means.append(logits.softmax(1) @ keys)
    return (torch.cat(means),)


def by_distances(y: Tensor, keys: Tensor, alpha_bar: Tensor) -> tuple[Tensor, ...]:
    """The equation as it is printed, with torch.cdist: all logits at once."""
    a = alpha_bar.to(y.dtype)[:, None]
    # ‖y − √ᾱ p‖² / (1−ᾱ) = ‖y/√ᾱ − p‖² ᾱ/(1−ᾱ)
    squares = torch.cdist(y / a.sqrt(), keys).square()
    return ((-squares * a / (2 * (1 - a))).softmax(1) @ keys,)


def by_attention(y: Tensor, keys: Tensor, alpha_bar: Tensor) -> tuple[Tensor, ...]:
    """As attention: |p|² is one more coordinate of the keys."""
    a = alpha_bar.to(y.dtype)[:, None]
    q = torch.cat((y * a.sqrt() / (1 - a), -a / (2 * (1 - a))), dim=1)
    k = torch.cat((keys, keys.square().sum(1, keepdim=True)), dim=1)
    v = F.pad(keys, (0, 1))
    mean = F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None], scale=1.0)
    return (mean[0, 0, :, :-1].contiguous(),)
