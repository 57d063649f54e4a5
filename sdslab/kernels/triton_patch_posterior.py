"""Triton body of `patch_posterior`: sizes of tiles, precision, allocation and launch.

Float32 products are six products of bfloat16 parts each, on the tensor cores: as exact as float32's
own, where a single one in TF32 (2^-11) would be wrong by more than logits differ at low noise.
"""

# Triton annotates with values (tl.constexpr), which a type checker takes for types of arguments.
# pyright: reportArgumentType=false, reportCallIssue=false

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdslab.kernels.triton_posterior_kernels import patch_posterior_kernel, sum_of_shares_kernel
from sdslab.kernels.validation import compute_dtype

# Columns of a tile: wider patches are multiplied piece by piece, wider values take more programs.
WIDEST = 32
# `tl.dot` takes no narrower one.
NARROWEST = 16
# Tiles of keys that are worth a program of their own.
SHORTEST_SHARE = 4
_TRITON_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


def patch_posterior_triton(
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
    """Body of `patch_posterior`, whose wrapper has checked the arguments."""
    dtype = compute_dtype(y)
    (n, r), k = y.shape, len(keys)
    if values is None and r > WIDEST:
        values = keys  # only a tile with all columns of the keys serves twice
    d = r if values is None else values.shape[1]
    m = 0 if context is None else context.shape[1]
    capability, processors = _gpu(y.device)
    constants = constants_of(dtype, r, d, m, bins=key_bin is not None, capability=capability)
    rows, columns, width = (constants[name] for name in ("M", "N", "D"))
    tiles = (triton.cdiv(n, rows), triton.cdiv(d, width))
    share = keys_per_share(tiles[0] * tiles[1], k, columns, processors)
    shares = triton.cdiv(k, share)
    means = y.new_empty(n, d)
    sums, peak, total = means, None, None
    if shares > 1:
        sums = y.new_empty(shares, n, d, dtype=dtype)
        peak, total = sums.new_empty(shares, n), sums.new_empty(shares, n)
    with torch.cuda.device_of(y):
        patch_posterior_kernel[(*tiles, shares)](
            y,
            keys,
            values,
            alpha_bar,
            bias,
            query_bin,
            key_bin,
            context,
            key_context,
            1 / context_scale**2,
            sigma_floor**2,
            sums,
            peak,
            total,
            n,
            k,
            r,
            d,
            m,
            share,
            PRODUCTS=precision_of(
                *(x.dtype for x in (y, keys, context, key_context) if x is not None)
            ),
            **constants,
            enable_fp_fusion=True,
        )
        if shares > 1:
            sum_of_shares_kernel[tiles](
                sums,
                peak,
                total,
                means,
                n,
                d,
                shares,
                M=rows,
                D=width,
                DTYPE=constants["DTYPE"],
                enable_fp_fusion=True,
            )
    return means


def constants_of(
    dtype: torch.dtype, r: int, d: int, m: int, *, bins: bool, capability: int
) -> dict[str, Any]:
    """Compile-time arguments, such that no register spills (the ahead-of-time tests see to it).

    Args:
        dtype: Precision of the computation.
        r: Columns of the keys.
        d: Columns of the values.
        m: Columns of the context, 0 without one.
        bins: Whether there are bins.
        capability: Major compute capability. From 9 on the tensor cores read tiles from shared
            memory, which leaves registers for larger ones.
    """
    whole = max(r, m) <= WIDEST
    if dtype == torch.float64:
        tile = (16, 16)
    elif whole:
        tile = (64, 32 if m or bins or capability < 9 else 64)
    else:
        tile = (32, 16)
    return {
        "R": _width(r),
        "D": _width(d),
        "C": _width(m),
        "WHOLE_KEYS": r <= WIDEST,
        "WHOLE_CONTEXT": m <= WIDEST,
        "MEANS": precision_of(dtype),
        "M": tile[0],
        "N": tile[1],
        "STAGES": 2,
        "DTYPE": _TRITON_DTYPES[dtype],
    }


def _width(size: int) -> int:
    """Columns of a tile: a power of two."""
    return min(max(triton.next_power_of_2(size), NARROWEST), WIDEST)


def precision_of(*dtypes: torch.dtype) -> str:
    """Input precision of `tl.dot` that keeps products of such factors exact, or as float32's."""
    if torch.float64 in dtypes or os.environ.get("TRITON_INTERPRET") == "1":
        return "ieee"
    if torch.float32 not in dtypes:
        return "tf32"  # which holds all digits of either half precision
    from triton.backends.nvidia.compiler import CUDAOptions

    # Older Tritons have no better than three TF32 products, which err four times as much.
    return "bf16x6" if "bf16x6" in CUDAOptions.allowed_dot_input_precisions else "tf32x3"


def keys_per_share(tiles: int, k: int, columns: int, processors: int) -> int:
    """Number of keys for each program: whole tiles, and two programs for each multiprocessor."""
    key_tiles = triton.cdiv(k, columns)
    shares = min(triton.cdiv(2 * processors, tiles), triton.cdiv(key_tiles, SHORTEST_SHARE))
    return triton.cdiv(key_tiles, shares) * columns


def _gpu(device: torch.device) -> tuple[int, int]:
    """Major compute capability and number of multiprocessors."""
    if device.type != "cuda":
        return 9, 132  # the interpreter stands in for an H100
    properties = torch.cuda.get_device_properties(device)
    return properties.major, properties.multi_processor_count
