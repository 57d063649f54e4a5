"""The GPU programs behind `patch_posterior`: attention with an online softmax.

A program takes a tile of queries, and of the values' columns, through the keys, a tile at a time:
all of them, or a share where there are fewer tiles than the GPU has room for. A second kernel then
adds the shares up, in the same order each time. Bias, bins and context enter the logits in
registers.
"""

# Triton annotates with values (tl.constexpr), which a type checker takes for mistakes.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportInvalidTypeForm=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportPossiblyUnboundVariable=false

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tile(ptr, rows, exists, width, start, WIDTH: tl.constexpr, DTYPE: tl.constexpr):
    """Some rows of a [..., width] matrix, WIDTH columns from `start`, 0 outside of it."""
    columns = start + tl.arange(0, WIDTH)
    offsets = rows.to(tl.int64)[:, None] * width + columns[None, :]
    inside = exists[:, None] & (columns < width)[None, :]
    return tl.load(ptr + offsets, mask=inside, other=0.0).to(DTYPE)


@triton.jit
def _products(
    query_ptr,
    key_ptr,
    queries,
    query_rows,
    is_query,
    key_rows,
    is_key,
    width,
    WIDTH: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """⟨q, k⟩ [M, N], |k|² [N] and the keys' first WIDTH columns, of which `queries` are q's."""
    keys = _tile(key_ptr, key_rows, is_key, width, 0, WIDTH, DTYPE)
    products = tl.dot(queries, tl.trans(keys), input_precision=PRECISION, out_dtype=DTYPE)
    squares = tl.sum(keys * keys, axis=1)
    if not WHOLE:
        for start in range(WIDTH, width, WIDTH):
            q = _tile(query_ptr, query_rows, is_query, width, start, WIDTH, DTYPE)
            k = _tile(key_ptr, key_rows, is_key, width, start, WIDTH, DTYPE)
            products = tl.dot(q, tl.trans(k), products, input_precision=PRECISION, out_dtype=DTYPE)
            squares += tl.sum(k * k, axis=1)
    return products, squares, keys


@triton.jit
def _accumulate(logits, values, peak, total, mean, PRECISION: tl.constexpr, DTYPE: tl.constexpr):
    """One step of the online softmax: the largest logit, the weights' sum, the weighted sum."""
    higher = tl.maximum(peak, tl.max(logits, axis=1))
    # A query that has seen no key yet subtracts nothing: −inf − (−inf) would be NaN.
    shift = tl.where(higher == -float("inf"), 0.0, higher)
    weights = tl.exp2(logits - shift[:, None])
    decay = tl.exp2(peak - shift)
    total = total * decay + tl.sum(weights, axis=1)
    mean = mean * decay[:, None]
    mean = tl.dot(weights, values, mean, input_precision=PRECISION, out_dtype=DTYPE)
    return higher, total, mean


@triton.jit
def patch_posterior_kernel(
    y_ptr,
    keys_ptr,
    values_ptr,
    alpha_bar_ptr,
    bias_ptr,
    query_bin_ptr,
    key_bin_ptr,
    context_ptr,
    key_context_ptr,
    context_precision: tl.float64,
    least_variance: tl.float64,
    mean_ptr,
    peak_ptr,
    total_ptr,
    n,
    k,
    r,
    d,
    m,
    share,
    R: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    WHOLE_KEYS: tl.constexpr,
    WHOLE_CONTEXT: tl.constexpr,
    PRODUCTS: tl.constexpr,
    MEANS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    STAGES: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Averages [k, d] values for each of [n, r] queries over the keys of one share.

    Without peak_ptr there is one share, and [n, d] means are written; with it the weighted sums
    [shares, n, d], and the largest logits (base 2) and the sums of weights, [shares, n].
    """
    rows = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    is_query = rows < n
    first = tl.program_id(2) * share
    last = tl.minimum(first + share, k)

    alpha_bar = tl.load(alpha_bar_ptr + rows, mask=is_query, other=0.5).to(tl.float64)
    # Through float64 because 1 - alpha_bar cancels at small t. Logits are in base 2.
    signal = tl.sqrt(alpha_bar)
    variance = tl.maximum(1.0 - alpha_bar, least_variance)
    towards = (signal / variance * _LOG2_E).to(DTYPE)
    half_signal = (0.5 * signal).to(DTYPE)
    nearness = tl.full((), context_precision * _LOG2_E, DTYPE)

    y = _tile(y_ptr, rows, is_query, r, 0, R, DTYPE)
    if context_ptr is not None:
        context = _tile(context_ptr, rows, is_query, m, 0, C, DTYPE)
    if query_bin_ptr is not None:
        query_bin = tl.load(query_bin_ptr + rows, mask=is_query, other=-2)

    peak = tl.full([M], -float("inf"), DTYPE)
    total = tl.zeros([M], DTYPE)
    mean = tl.zeros([M, D], DTYPE)
    for start in tl.range(first, last, N, num_stages=STAGES):
        key_rows = start + tl.arange(0, N)
        is_key = key_rows < last
        seen = is_query[:, None] & is_key[None, :]
        if key_bin_ptr is not None:
            key_bin = tl.load(key_bin_ptr + key_rows, mask=is_key, other=-3)
            same = query_bin[:, None] == key_bin[None, :]
            seen &= same | (query_bin == -1)[:, None] | (key_bin == -1)[None, :]
        # Only bins can hide a whole tile.
        if key_bin_ptr is None or tl.max(seen.to(tl.int32)) > 0:
            products, squares, keys = _products(
                y_ptr,
                keys_ptr,
                y,
                rows,
                is_query,
                key_rows,
                is_key,
                r,
                R,
                WHOLE_KEYS,
                PRODUCTS,
                DTYPE,
            )
            logits = towards[:, None] * (products - half_signal[:, None] * squares[None, :])
            if context_ptr is not None:
                products, squares, _ = _products(
                    context_ptr,
                    key_context_ptr,
                    context,
                    rows,
                    is_query,
                    key_rows,
                    is_key,
                    m,
                    C,
                    WHOLE_CONTEXT,
                    PRODUCTS,
                    DTYPE,
                )
                logits += nearness * (products - 0.5 * squares[None, :])
            if bias_ptr is not None:
                bias = tl.load(bias_ptr + key_rows, mask=is_key, other=0.0).to(DTYPE)
                logits += (bias * _LOG2_E)[None, :]
            logits = tl.where(seen, logits, -float("inf"))
            if values_ptr is not None:
                values = _tile(values_ptr, key_rows, is_key, d, tl.program_id(1) * D, D, DTYPE)
            else:
                values = keys
            peak, total, mean = _accumulate(logits, values, peak, total, mean, MEANS, DTYPE)

    columns = tl.program_id(1) * D + tl.arange(0, D)
    inside = is_query[:, None] & (columns < d)[None, :]
    if peak_ptr is None:
        mean = mean / tl.where(is_query, total, 1.0)[:, None]
        tl.store(mean_ptr + rows[:, None] * d + columns[None, :], mean, mask=inside)
    else:
        rows += tl.program_id(2).to(tl.int64) * n
        tl.store(mean_ptr + rows[:, None] * d + columns[None, :], mean, mask=inside)
        if tl.program_id(1) == 0:
            tl.store(peak_ptr + rows, peak, mask=is_query)
            tl.store(total_ptr + rows, total, mask=is_query)


@triton.jit
def sum_of_shares_kernel(
    sums_ptr,
    peak_ptr,
    total_ptr,
    mean_ptr,
    n,
    d,
    shares,
    M: tl.constexpr,
    D: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """[shares, n, d] weighted sums -> [n, d] means."""
    rows = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    is_query = rows < n
    columns = tl.program_id(1) * D + tl.arange(0, D)
    offsets = rows[:, None] * d + columns[None, :]
    inside = is_query[:, None] & (columns < d)[None, :]
    peak = tl.full([M], -float("inf"), DTYPE)
    total = tl.zeros([M], DTYPE)
    mean = tl.zeros([M, D], DTYPE)
    row = tl.full((), 0, tl.int64)
    for _ in range(shares):
        share_peak = tl.load(peak_ptr + row + rows, mask=is_query, other=0.0)
        share_total = tl.load(total_ptr + row + rows, mask=is_query, other=0.0)
        sums = tl.load(sums_ptr + row * d + offsets, mask=inside, other=0.0)
        higher = tl.maximum(peak, share_peak)
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        decay, scale = tl.exp2(peak - shift), tl.exp2(share_peak - shift)
        total = total * decay + share_total * scale
        mean = mean * decay[:, None] + sums * scale[:, None]
        peak = higher
        row += n
    mean = mean / tl.where(is_query, total, 1.0)[:, None]
    tl.store(mean_ptr + offsets, mean, mask=inside)
