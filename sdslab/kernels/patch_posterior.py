"""The posterior mean over the patches of an exemplar: attention of noisy patches to clean ones."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.kernels.validation import Backend, body_for, compute_dtype, require_no_graph

SIGMA_FLOOR = 0.02  # below it float32 rounds the logits away, and the nearest patch wins anyway
ANY_BIN = -1
# Queries are taken by as many as make this many logits, for where torch would store them all.
_LOGITS_AT_ONCE = 2**24
# Fewer queries are a single task of torch's attention on a CPU, whose sums the threads would share.
_FEWEST_QUERIES = 64


def _augmented(
    y: Tensor,
    keys: Tensor,
    alpha_bar: Tensor,
    bias: Tensor | None,
    context: Tensor | None,
    key_context: Tensor | None,
    context_scale: float,
    sigma_floor: float,
) -> tuple[Tensor, Tensor]:
    """Queries [n, w] and keys [k, w] whose products are the logits.

    Each term is one more coordinate, so that plain attention adds it up.
    """
    dtype = compute_dtype(y)
    alpha_bar = alpha_bar.double()
    variance = (1 - alpha_bar).clamp_min(sigma_floor**2)
    towards, away = alpha_bar.sqrt() / variance, -alpha_bar / (2 * variance)
    query = [towards.to(dtype)[:, None] * y.to(dtype), away.to(dtype)[:, None]]
    key = [keys.to(dtype), keys.to(dtype).square().sum(1, keepdim=True)]
    log_prior = None if bias is None else bias.to(dtype)[:, None]
    if context is not None and key_context is not None:
        query.append(context.to(dtype) / context_scale**2)
        key.append(key_context.to(dtype))
        distance = key[-1].square().sum(1, keepdim=True) / (2 * context_scale**2)
        log_prior = -distance if log_prior is None else log_prior - distance
    if log_prior is not None:
        query.append(query[0].new_ones(len(y), 1))
        key.append(log_prior)
    return torch.cat(query, dim=1), torch.cat(key, dim=1)


def _attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(queries keysᵀ) values, [n, d], without an n × k matrix; NaN if there is no key."""
    if not len(keys):
        return values.new_full((len(queries), values.shape[1]), float("nan"))
    # One width for all three, which is what torch's fused attention takes.
    width = max(queries.shape[1], values.shape[1])
    missing = max(0, _FEWEST_QUERIES - len(queries))
    q = F.pad(queries, (0, width - queries.shape[1], 0, missing))[None, None]
    k, v = (F.pad(x, (0, width - x.shape[1]))[None, None] for x in (keys, values))
    means = [
        F.scaled_dot_product_attention(some, k, v, scale=1.0)
        for some in q.split(max(1, _LOGITS_AT_ONCE // len(keys)), dim=2)
    ]
    return torch.cat(means, dim=2)[0, 0, : len(queries), : values.shape[1]]


def _reference(
    y: Tensor,
    keys: Tensor,
    alpha_bar: Tensor,
    values: Tensor | None,
    bias: Tensor | None,
    query_bin: Tensor | None,
    key_bin: Tensor | None,
    context: Tensor | None,
    key_context: Tensor | None,
    context_scale: float,
    sigma_floor: float,
) -> Tensor:
    queries, augmented = _augmented(
        y, keys, alpha_bar, bias, context, key_context, context_scale, sigma_floor
    )
    values = (keys if values is None else values).to(queries.dtype)
    if query_bin is None or key_bin is None:
        return _attention(queries, augmented, values).to(y.dtype).contiguous()
    means = y.new_empty(len(y), values.shape[1])
    for number in query_bin.unique().tolist():
        here = query_bin == number
        seen = (key_bin == number) | (key_bin == ANY_BIN) | (number == ANY_BIN)
        means[here] = _attention(queries[here], augmented[seen], values[seen]).to(y.dtype)
    return means


def patch_posterior(
    y: Tensor,
    keys: Tensor,
    alpha_bar: Tensor,
    *,
    values: Tensor | None = None,
    bias: Tensor | None = None,
    query_bin: Tensor | None = None,
    key_bin: Tensor | None = None,
    context: Tensor | None = None,
    key_context: Tensor | None = None,
    context_scale: float = 1.0,
    sigma_floor: float = SIGMA_FLOOR,
    backend: Backend = "auto",
) -> Tensor:
    """E[p | y] for y = √ᾱ p + √(1−ᾱ) n, where p is one of the keys and n is standard normal.

    Each query's mean of the values, weighted by the softmax over k of

        −‖y − √ᾱ p_k‖² / 2(1−ᾱ) + b_k [− ‖c − l_k‖² / 2s²]

    over the keys that the query sees. The n × k logits are never stored.

    Args:
        y: [n, r] noisy patches, in any orthonormal coordinates.
        keys: [k, r] clean patches p_k.
        alpha_bar: [n] in [0, 1].
        values: [k, d], what is averaged, for example further maps of each patch; None averages the
            keys themselves.
        bias: [k] log prior b_k, up to a constant; −inf hides a key; None weighs all alike.
        query_bin: [n] int64 ≥ −1. A query sees the keys of its bin and those of bin −1; a query of
            bin −1 sees all. Fastest where queries and keys are sorted by it.
        key_bin: [k] int64 ≥ −1, the same of each key. Each query must see a key, which is checked
            on the CPU only.
        context: [n, m], what else is known of each query, c: features of a low-resolution picture.
        key_context: [k, m], the same of each key, l_k.
        context_scale: s, how far the two may differ.
        sigma_floor: √(1−ᾱ) counts as at least this.
        backend: "auto" by device, "reference" (plain torch) or "triton".

    Returns:
        [n, r] or [n, d], of y's dtype; computed in float32, or float64 for float64 y.

    Raises:
        ValueError: Shapes, dtypes or values do not fit, a tensor requires a gradient, or the
            backend cannot run here.

    Source: Kamb & Ganguli 2024 (arXiv 2412.20292), for the patches of one photograph.
    """
    if y.ndim != 2 or keys.ndim != 2 or y.shape[1] != keys.shape[1] or not len(keys):
        raise ValueError(
            f"y and keys must be [n, r] and [k, r] with k ≥ 1, got {list(y.shape)} and "
            f"{list(keys.shape)}; project both onto the same basis"
        )
    for pair in (
        {"context": context, "key_context": key_context},
        {"query_bin": query_bin, "key_bin": key_bin},
    ):
        missing = [name for name, tensor in pair.items() if tensor is None]
        if len(missing) == 1:
            raise ValueError(f"{' and '.join(pair)} must come together, got no {missing[0]}")
    _require_shapes(
        y,
        alpha_bar=(alpha_bar, [len(y)]),
        values=(values, [len(keys), -1]),
        bias=(bias, [len(keys)]),
        query_bin=(query_bin, [len(y)]),
        key_bin=(key_bin, [len(keys)]),
        context=(context, [len(y), -1]),
        key_context=(key_context, [len(keys), -1 if context is None else context.shape[-1]]),
    )
    if query_bin is not None and key_bin is not None:
        _require_bins(query_bin, key_bin)
    optional = {"values": values, "bias": bias, "context": context, "key_context": key_context}
    require_no_graph(
        y=y, keys=keys, alpha_bar=alpha_bar, **{k: v for k, v in optional.items() if v is not None}
    )
    if body_for(backend, y.device) == "triton":
        from sdslab.kernels.triton_patch_posterior import patch_posterior_triton as body
    else:
        body = _reference
    if not len(y):
        return y.new_empty(0, (keys if values is None else values).shape[1])
    return body(
        y.contiguous(),
        keys.contiguous(),
        alpha_bar.contiguous(),
        _contiguous(values),
        _contiguous(bias),
        _contiguous(query_bin),
        _contiguous(key_bin),
        _contiguous(context),
        _contiguous(key_context),
        float(context_scale),
        float(sigma_floor),
    )


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _require_shapes(y: Tensor, **tensors: tuple[Tensor | None, list[int]]) -> None:
    """Each tensor has its shape, where −1 is any size, and lives where y lives."""
    for name, (tensor, shape) in tensors.items():
        if tensor is None:
            continue
        expected = [tensor.shape[-1] if size == -1 and tensor.ndim else size for size in shape]
        if list(tensor.shape) != expected:
            sizes = ", ".join("any" if size == -1 else str(size) for size in shape)
            raise ValueError(
                f"{name} must be [{sizes}], got {list(tensor.shape)}; "
                "give one row for each query, or for each key"
            )
        if tensor.device != y.device:
            raise ValueError(
                f"{name} must be on the device of y, {y.device}, got {tensor.device}; "
                "move it with .to(y.device)"
            )


def _require_bins(query_bin: Tensor, key_bin: Tensor) -> None:
    """Bins are int64 and, where that can be seen without waiting for a GPU, none is empty."""
    for name, tensor in (("query_bin", query_bin), ("key_bin", key_bin)):
        if tensor.dtype != torch.int64:
            raise ValueError(f"{name} must be int64, got {tensor.dtype}; convert it with .long()")
    if query_bin.device.type != "cpu" or (key_bin == ANY_BIN).any():
        return
    asked = query_bin.unique()
    empty = asked[(asked != ANY_BIN) & ~torch.isin(asked, key_bin)]
    if len(empty):
        raise ValueError(
            f"each query must see a key, got no key of bin {empty.tolist()}; give such queries "
            f"bin {ANY_BIN}, which sees all keys"
        )
