"""The ops that the kernel study times: ours, the same in plain torch, and what each must move."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.errors import UserError
from sdslab.kernels import (
    SR_CONDITION_STREAM,
    NoiseKey,
    degenerate_sds_gradient,
    perturb,
    philox_normal,
    sds_gradient_from_output,
    sr_condition,
)
from sdslab.kernels.patch_posterior import patch_posterior
from sdslab.runs.from_toml import Bound

# Queries that a user would take at a time: more logits would fill the memory.
_CHUNK = 1024
# What the eager code of a user would be: few lines, no in-place tricks, results in a tuple.
Eager = Callable[..., tuple[Tensor, ...]]


@final
class BatchAndSide(Bound):
    """Pairs [batch, height = width] of pictures."""

    def check(self, value: Any, where: str) -> None:
        for size in value:
            if len(size) != 2 or size[0] < 1 or size[1] < 4:
                raise UserError(
                    f"{where} must be pairs [batch, side] with a side of at least 4, got "
                    f"{list(size)}"
                )


Sizes = Annotated[tuple[tuple[int, ...], ...], BatchAndSide()]


@dataclass(frozen=True)
class KernelCase:
    """An op with its options, timed at every size."""

    name: str
    label: str
    operation: Literal[
        "perturb", "sds_gradient", "degenerate_sds_gradient", "sr_condition", "patch_posterior"
    ]
    """A name of ``OPERATIONS``."""
    channels: int = 3
    """Channels of the picture; of patch_posterior the coordinates of a patch."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the picture; of sds_gradient the model's output, beside a float32 picture."""
    noise: Literal["key", "tensor"] = "key"
    """Drawn from a key by the op, or given."""
    guided: bool = False
    """Whether a model's output has an unconditional half."""
    mode: Literal["castex", "pipeline"] = "castex"
    """Mode of sr_condition, which takes a render twice as large and a quarter of that."""
    keys: int = 4096
    """Keys of patch_posterior, which has a query for each pixel."""
    cpu_sizes: Sizes = ()
    """Instead of the settings', where there are any."""
    cuda_sizes: Sizes = ()
    """The same on a GPU."""


@dataclass(frozen=True)
class Problem:
    """One op at one size.

    Attributes:
        ours: The op, its inputs bound.
        eager: The same in plain torch, in the precision of its arguments.
        arguments: What ``eager`` takes, noise as a tensor, so that it computes what ours does.
        timed_arguments: What it takes when it is timed: with None for noise it draws its own.
        bytes: What must be read and written once, whatever computes it.
        flops: Of the printed equations; drawing noise is not counted.
        rivals: Other ways to the same result, inputs bound; with any, the row is about arithmetic
            and memory instead of bandwidth, and torch.compile is left out.
    """

    ours: Callable[[], tuple[Tensor, ...]]
    eager: Eager
    arguments: tuple[Tensor, ...]
    timed_arguments: tuple[Tensor | None, ...]
    bytes: int
    flops: int
    rivals: Mapping[str, Callable[[], tuple[Tensor, ...]]] = field(default_factory=dict)

    @property
    def contenders(self) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
        """Ours, eager code and the rivals, inputs bound."""
        return {
            "ours": self.ours,
            "eager": lambda: self.eager(*self.timed_arguments),
            **self.rivals,
        }


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
    """Attention: |p|² is one more coordinate of the keys."""
    a = alpha_bar.to(y.dtype)[:, None]
    q = torch.cat((y * a.sqrt() / (1 - a), -a / (2 * (1 - a))), dim=1)
    k = torch.cat((keys, keys.square().sum(1, keepdim=True)), dim=1)
    v = F.pad(keys, (0, 1))
    mean = F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None], scale=1.0)
    return (mean[0, 0, :, :-1].contiguous(),)


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
