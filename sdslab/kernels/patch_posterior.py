"""The posterior mean over the patches of an exemplar: attention of noisy patches to clean ones."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.kernels.backend import compute_dtype

SIGMA_FLOOR = 0.02  # below it float32 rounds the logits away, and the nearest patch wins anyway


def _reference(
    y: Tensor,
    keys: Tensor,
    alpha_bar: Tensor,
    bias: Tensor | None,
    context: Tensor | None,
    key_context: Tensor | None,
    context_scale: float,
    sigma_floor: float,
) -> Tensor:
    dtype = compute_dtype(y)
    alpha_bar = alpha_bar.double()
    variance = (1 - alpha_bar).clamp_min(sigma_floor**2)
    towards, away = alpha_bar.sqrt() / variance, -alpha_bar / (2 * variance)
    keys = keys.to(dtype)
    log_prior = keys.new_zeros(len(keys)) if bias is None else bias.to(dtype)
    # Everything that the logits add up is one more coordinate of queries and keys, so that plain
    # attention computes them: no queries × keys matrix, no mask.
    query = [towards.to(dtype)[:, None] * y.to(dtype), away.to(dtype)[:, None]]
    key = [keys, keys.square().sum(1, keepdim=True)]
    if context is not None and key_context is not None:
        query.append(context.to(dtype) / context_scale**2)
        key.append(key_context.to(dtype))
        log_prior = log_prior - key_context.to(dtype).square().sum(1) / (2 * context_scale**2)
    query.append(query[0].new_ones(len(y), 1))
    key.append(log_prior[:, None])
    queries, augmented = torch.cat(query, dim=1), torch.cat(key, dim=1)
    values = F.pad(keys, (0, augmented.shape[1] - keys.shape[1]))  # one width: the fused kernel's
    mean = F.scaled_dot_product_attention(
        queries[None, None], augmented[None, None], values[None, None], scale=1.0
    )
    return mean[0, 0, :, : keys.shape[1]].to(y.dtype).contiguous()


_op = torch.library.custom_op("sdslab::patch_posterior", _reference, mutates_args=())


@_op.register_fake
def _(y: Tensor, keys: Tensor, *_: object) -> Tensor:
    return y.new_empty(len(y), keys.shape[1])


def patch_posterior(
    y: Tensor,
    keys: Tensor,
    alpha_bar: Tensor,
    *,
    bias: Tensor | None = None,
    context: Tensor | None = None,
    key_context: Tensor | None = None,
    context_scale: float = 1.0,
    sigma_floor: float = SIGMA_FLOOR,
) -> Tensor:
    """E[p | y] for y = √ᾱ p + √(1−ᾱ) n, where p is one of the keys and n is standard normal.

    Each query's mean of the keys, weighted by the softmax over k of

        −‖y − √ᾱ p_k‖² / 2(1−ᾱ) + b_k [− ‖c − l_k‖² / 2s²]

    Args:
        y: [n, r] noisy patches, in any orthonormal coordinates.
        keys: [k, r] clean patches p_k.
        alpha_bar: [n] in [0, 1).
        bias: [k] log prior b_k, up to a constant; None weighs all alike.
        context: [n, m], what else is known of each query, c: features of a low-resolution picture.
        key_context: [k, m], the same of each key, l_k.
        context_scale: s, how far the two may differ.
        sigma_floor: √(1−ᾱ) counts as at least this.

    Returns:
        [n, r], of y's dtype; computed in float32, or float64 for float64 y.

    Raises:
        ValueError: shapes do not fit.

    Source: Kamb & Ganguli 2024 (arXiv 2412.20292), for the patches of one photograph.
    """
    if y.ndim != 2 or keys.ndim != 2 or y.shape[1] != keys.shape[1] or not len(keys):
        raise ValueError(
            f"y and keys must be [n, r] and [k, r] with k ≥ 1, got {list(y.shape)} and "
            f"{list(keys.shape)}; project both onto the same basis"
        )
    if (context is None) != (key_context is None):
        raise ValueError("context and key_context must come together, got one without the other")
    width = 0 if context is None else context.shape[-1]
    for name, tensor, shape in (
        ("alpha_bar", alpha_bar, [len(y)]),
        ("bias", bias, [len(keys)]),
        ("context", context, [len(y), width]),
        ("key_context", key_context, [len(keys), width]),
    ):
        if tensor is not None and list(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape}, got {list(tensor.shape)}")
    if not len(y):
        return y.new_empty(0, keys.shape[1])
    return _op(
        y.contiguous(),
        keys.contiguous(),
        alpha_bar,
        bias,
        context,
        key_context,
        float(context_scale),
        float(sigma_floor),
    )
