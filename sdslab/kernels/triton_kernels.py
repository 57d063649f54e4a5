"""The GPU programs behind `triton_bodies`.

Each runs on a one-dimensional grid of b * programs programs. A program handles one tile of BLOCK
consecutive elements of a sample, which are BLOCK / 4 Philox blocks, or TILES of them. Sums leave
one partial result for each program: no atomics, so the result is the same each time.
"""

# Triton annotates with values (tl.uint32, tl.constexpr), which a type checker takes for mistakes.
# pyright: reportInvalidTypeForm=false, reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from sdslab.kernels.triton_noise import KEY_WORDS, normals, philox_lanes, rates


@triton.jit
def _program(n, BLOCK: tl.constexpr):
    """This program's sample, its number within the sample, its offsets there and their mask."""
    # Not cdiv, whose n + BLOCK - 1 leaves 32 bits for the largest n.
    programs = (n - 1) // BLOCK + 1
    row = (tl.program_id(0) // programs).to(tl.int64)
    part = tl.program_id(0) % programs
    offsets, mask = _tile(part, n, BLOCK)
    return row, part, offsets, mask


@triton.jit
def _tile(part, n, BLOCK: tl.constexpr):
    """The offsets of a tile within its sample, and their mask."""
    offsets = part.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return offsets, offsets < n


@triton.jit
def _program_of_tiles(n, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """This program's sample and its first tile there."""
    programs = (n - 1) // (BLOCK * TILES) + 1
    row = (tl.program_id(0) // programs).to(tl.int64)
    return row, tl.program_id(0) % programs * TILES


@triton.jit
def _counters(part, BLOCK: tl.constexpr):
    """The counters of this program's Philox blocks."""
    return part.to(tl.uint32) * (BLOCK // 4) + tl.arange(0, BLOCK // 4).to(tl.uint32)


@triton.jit
def _noise(
    noise_ptr,
    sample_ptr,
    row,
    part,
    offsets,
    mask,
    n,
    seed_low,
    seed_high,
    stream,
    step,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ε of this program's elements, loaded if there is a tensor and drawn if there is none."""
    if noise_ptr is None:
        counter = _counters(part, BLOCK)
        eps = normals(sample_ptr, row, counter, seed_low, seed_high, stream, step, DTYPE)
    else:
        eps = tl.load(noise_ptr + row * n + offsets, mask=mask, other=0.0).to(DTYPE)
    return eps


@triton.jit
def _clamp(x, BOUND: tl.constexpr):
    """Bounds |x|, as torch does: NaN stays NaN."""
    if BOUND is not None:
        x = tl.where(x > BOUND, BOUND, tl.where(x < -BOUND, -BOUND, x)).to(x.dtype)
    return x


@triton.jit
def _store_gradient(gradient_ptr, row, offsets, mask, n, gradient, difference, used):
    """Writes a tile of the gradient; the tile's sum of squares and non-finite count."""
    infinity = float("inf")
    finite = (tl.abs(used) < infinity) & (tl.abs(gradient) < infinity)
    tl.store(gradient_ptr + row * n + offsets, gradient, mask=mask)
    square_sum = tl.sum(tl.where(mask, difference * difference, 0.0), axis=0)
    return square_sum, tl.sum((mask & (finite == 0)).to(tl.int32), axis=0)


@triton.jit
def _store_sums(loss_ptr, nonfinite_ptr, loss, nonfinite):
    """Writes this program's share, in the order of the grid."""
    tl.store(loss_ptr + tl.program_id(0).to(tl.int64), loss)
    tl.store(nonfinite_ptr + tl.program_id(0).to(tl.int64), nonfinite)


@triton.jit(do_not_specialize=KEY_WORDS)
def bits_kernel(
    sample_ptr,
    bits_ptr,
    seed_low: tl.uint32,
    seed_high: tl.uint32,
    stream: tl.uint32,
    step: tl.uint32,
    n,
    BLOCK: tl.constexpr,
):
    """Fills [b, n] int64 with Philox words."""
    row, part, offsets, mask = _program(n, BLOCK)
    counter = _counters(part, BLOCK)
    a, b, c, d = philox_lanes(sample_ptr, row, counter, seed_low, seed_high, stream, step)
    bits = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
    tl.store(bits_ptr + row * n + offsets, bits.to(tl.int64), mask=mask)


@triton.jit(do_not_specialize=KEY_WORDS)
def normal_kernel(
    sample_ptr,
    normal_ptr,
    seed_low: tl.uint32,
    seed_high: tl.uint32,
    stream: tl.uint32,
    step: tl.uint32,
    n,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Fills [b, n] with normals."""
    row, part, offsets, mask = _program(n, BLOCK)
    counter = _counters(part, BLOCK)
    drawn = normals(sample_ptr, row, counter, seed_low, seed_high, stream, step, DTYPE)
    tl.store(normal_ptr + row * n + offsets, drawn, mask=mask)


@triton.jit(do_not_specialize=KEY_WORDS)
def perturb_kernel(
    x_ptr,
    alpha_bar_ptr,
    noise_ptr,
    sample_ptr,
    seed_low: tl.uint32,
    seed_high: tl.uint32,
    stream: tl.uint32,
    step: tl.uint32,
    x_t_ptr,
    n,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Noises [b, n] samples to their timesteps."""
    row, part, offsets, mask = _program(n, BLOCK)
    x = tl.load(x_ptr + row * n + offsets, mask=mask, other=0.0).to(DTYPE)
    eps = _noise(
        noise_ptr,
        sample_ptr,
        row,
        part,
        offsets,
        mask,
        n,
        seed_low,
        seed_high,
        stream,
        step,
        DTYPE,
        BLOCK,
    )
    signal, sigma = rates(alpha_bar_ptr, row, DTYPE)
    tl.store(x_t_ptr + row * n + offsets, signal * x + sigma * eps, mask=mask)


@triton.jit(do_not_specialize=KEY_WORDS)
def sds_gradient_kernel(
    x_ptr,
    model_output_ptr,
    alpha_bar_ptr,
    weight_ptr,
    noise_ptr,
    sample_ptr,
    seed_low: tl.uint32,
    seed_high: tl.uint32,
    stream: tl.uint32,
    step: tl.uint32,
    guidance_scale: tl.float64,
    coefficients_ptr,
    gradient_ptr,
    loss_ptr,
    nonfinite_ptr,
    n,
    output_stride,
    next_prediction,
    samples,
    PREDICTIONS: tl.constexpr,
    PREDICTION_TYPE: tl.constexpr,
    FORM: tl.constexpr,
    CLAMP: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    """The distillation gradient, loss and non-finite count from a model's output."""
    row, first = _program_of_tiles(n, BLOCK, TILES)
    signal, sigma = rates(alpha_bar_ptr, row, DTYPE)
    weight = tl.load(weight_ptr + row).to(DTYPE)
    half_weight = 0.5 * weight
    if FORM == "epsilon":
        half_weight = half_weight * (sigma / signal)

    square_sum = tl.zeros((), DTYPE)
    nonfinite = tl.zeros((), tl.int32)
    for tile in tl.static_range(TILES):
        part = first + tile
        offsets, mask = _tile(part, n, BLOCK)
        x = tl.load(x_ptr + row * n + offsets, mask=mask, other=0.0).to(DTYPE)
        eps = _noise(
            noise_ptr,
            sample_ptr,
            row,
            part,
            offsets,
            mask,
            n,
            seed_low,
            seed_high,
            stream,
            step,
            DTYPE,
            BLOCK,
        )
        x_t = signal * x + sigma * eps

        output_ptrs = model_output_ptr + row * output_stride + offsets
        output = tl.load(output_ptrs, mask=mask, other=0.0).to(DTYPE)
        total, of_noise, x_part, x_t_part = 1.0, -1.0, x, x_t
        if coefficients_ptr is None:
            if PREDICTIONS == 2:
                other = tl.load(output_ptrs + next_prediction, mask=mask, other=0.0).to(DTYPE)
                output = output + tl.full((), guidance_scale, DTYPE) * (other - output)
        else:
            first = output
            total = tl.load(coefficients_ptr + row).to(DTYPE)
            output = total * first
            x_part, x_t_part = total * x, total * x_t
            for i in tl.static_range(1, PREDICTIONS):
                other_ptrs = output_ptrs + i * next_prediction
                other = tl.load(other_ptrs, mask=mask, other=0.0).to(DTYPE)
                coefficient = tl.load(coefficients_ptr + i * samples + row).to(DTYPE)
                output = output + coefficient * (other - first)
            of_noise = tl.load(coefficients_ptr + PREDICTIONS * samples + row).to(DTYPE)

        if PREDICTION_TYPE == "epsilon":
            x0_hat = (x_t_part - sigma * output) / signal
        elif PREDICTION_TYPE == "v":
            x0_hat = signal * x_t_part - sigma * output
        elif PREDICTION_TYPE == "flow":
            x0_hat = (x_t_part - sigma * output) / (signal + sigma)
        else:
            x0_hat = output
        x0_hat = _clamp(x0_hat, CLAMP)

        if FORM == "x0":
            difference = x_part - x0_hat
            if coefficients_ptr is not None:
                difference = difference + (total + of_noise) * (sigma / signal) * eps
        else:
            eps_hat = output
            if PREDICTION_TYPE != "epsilon" or CLAMP is not None:
                eps_hat = (x_t_part - signal * x0_hat) / sigma
            difference = eps_hat + of_noise * eps
        squares, count = _store_gradient(
            gradient_ptr, row, offsets, mask, n, weight * difference, difference, output
        )
        square_sum += squares
        nonfinite += count
    _store_sums(loss_ptr, nonfinite_ptr, half_weight * square_sum, nonfinite)


@triton.jit
def degenerate_sds_gradient_kernel(
    x_ptr,
    target_ptr,
    alpha_bar_ptr,
    weight_ptr,
    gradient_ptr,
    loss_ptr,
    nonfinite_ptr,
    n,
    target_stride,
    FORM: tl.constexpr,
    CLAMP: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    """The same from the one image that the model predicts."""
    row, first = _program_of_tiles(n, BLOCK, TILES)
    weight = tl.load(weight_ptr + row).to(DTYPE)
    if FORM == "epsilon":
        alpha_bar = tl.load(alpha_bar_ptr + row).to(tl.float64)
        weight = weight * tl.sqrt(alpha_bar / (1.0 - alpha_bar)).to(DTYPE)

    square_sum = tl.zeros((), DTYPE)
    nonfinite = tl.zeros((), tl.int32)
    for tile in tl.static_range(TILES):
        offsets, mask = _tile(first + tile, n, BLOCK)
        x = tl.load(x_ptr + row * n + offsets, mask=mask, other=0.0).to(DTYPE)
        target_ptrs = target_ptr + row * target_stride + offsets
        target = tl.load(target_ptrs, mask=mask, other=0.0).to(DTYPE)
        difference = x - _clamp(target, CLAMP)
        squares, count = _store_gradient(
            gradient_ptr, row, offsets, mask, n, weight * difference, difference, target
        )
        square_sum += squares
        nonfinite += count
    _store_sums(loss_ptr, nonfinite_ptr, 0.5 * weight * square_sum, nonfinite)
