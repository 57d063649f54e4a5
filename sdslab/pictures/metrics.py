"""How alike two pictures are: point by point, and as textures."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def mse(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean squared error of two tensors of one shape, accumulated in float64.

    Raises:
        ValueError: the shapes differ.
    """
    if image.shape != reference.shape:
        raise ValueError(
            f"image and reference must have one shape, got {list(image.shape)} and "
            f"{list(reference.shape)}; resize or broadcast one of them first"
        )
    return (image.double() - reference.double()).square().mean().item()


def psnr_db(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Peak signal-to-noise ratio 10 log10(1 / MSE) of images whose range is [0, 1].

    Values outside [0, 1] are taken as they are: clamp first to measure what a screen would show.

    Args:
        image: any shape, values nominally in [0, 1].
        reference: the same shape.

    Returns:
        Decibels; ``inf`` where the two are equal, ``nan`` where either holds a NaN.
    """
    error = mse(image, reference)
    return math.inf if error == 0 else -10 * math.log10(error) if error > 0 else math.nan


PATCH = 7
MOST_PATCHES = 8192  # of a bag, drawn at random where there are more
BASES = 2  # sets of orthonormal directions that patches are projected on
CHUNK = 1024


def sliced_wasserstein(
    a: Tensor,
    b: Tensor,
    *,
    patch: int = PATCH,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    seed: int = 0,
) -> float:
    """The distance of two distributions of patches, in units of pixel values.

    The root mean square, over random directions in the space of patches, of the one-dimensional
    Wasserstein-2 distance, scaled so that a picture and the same one made brighter by δ are δ
    apart. Directions come in whole orthonormal bases, which makes that exact for any seed.

    Args:
        a: [n, c, h, w].
        b: [m, c, h', w'], of its own size.
        patch: height and width of a patch.
        mask_a: [n, 1, h, w] bool; only patches wholly inside count. None counts all.
        mask_b: the same of ``b``.
        seed: of the directions and of the patches that are drawn.

    Returns:
        At least 0; NaN where a mask leaves no patch.

    Source: Rabin et al. 2011, "Wasserstein barycenter and its application to texture mixing".
    """
    generator = torch.Generator().manual_seed(seed)
    rows_a = _drawn(patch_rows(a, patch, mask_a), generator)
    rows_b = _drawn(patch_rows(b, patch, mask_b), generator)
    if not (len(rows_a) and len(rows_b)):
        return math.nan
    size = rows_a.shape[1]
    directions = torch.cat(
        [
            torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.double))[0]
            for _ in range(BASES)
        ]
    ).to(rows_a)
    # Both quantile functions at the same levels; equally many patches are compared one to one.
    count = min(len(rows_a), len(rows_b))
    quantiles_a, quantiles_b = (_quantiles(rows @ directions.T, count) for rows in (rows_a, rows_b))
    return (quantiles_a - quantiles_b).square().mean().sqrt().item()


def fidelity(
    a: Tensor,
    exemplar: Tensor,
    *,
    patch: int = PATCH,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    seed: int = 0,
) -> float:
    """How far a patch of ``a`` is from the nearest of the exemplar's, on average.

    Arguments are those of `sliced_wasserstein`.

    Returns:
        The root mean square difference of the pixels of a patch, averaged over patches; NaN where a
        mask leaves none.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = _drawn(patch_rows(a, patch, mask_a), generator)
    references = _drawn(patch_rows(exemplar, patch, mask_b), generator)
    if not (len(rows) and len(references)):
        return math.nan
    # Products of matrices find the nearest fast, but round small distances away.
    nearest = torch.cat(
        [
            (chunk - references[torch.cdist(chunk, references).argmin(1)]).norm(dim=1)
            for chunk in rows.split(CHUNK)
        ]
    )
    return (nearest / math.sqrt(rows.shape[1])).mean().item()


def completeness(
    a: Tensor,
    exemplar: Tensor,
    *,
    patch: int = PATCH,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    seed: int = 0,
) -> float:
    """How far a patch of the exemplar is from the nearest of ``a``'s: `fidelity` the other way.

    A picture that repeats one corner of the exemplar has a small `fidelity` and a large
    completeness. Arguments and unit are those of `fidelity`.
    """
    return fidelity(exemplar, a, patch=patch, mask_a=mask_b, mask_b=mask_a, seed=seed)


WAVELENGTHS = (3.0, 6.0, 12.0)  # pixels
ORIENTATIONS = 6
LEVELS = 64  # of quantile functions


def gabor_distance(
    a: Tensor, b: Tensor, *, mask_a: Tensor | None = None, mask_b: Tensor | None = None
) -> float:
    """How differently two textures answer Gabor filters: how strongly, and which ones together.

    Strengths say how much there is of each size and direction, and whether it is a little all over
    or a lot here and there; where strengths rise together there are edges. Blended patches lack
    both, and noise of the same spectrum the edges, which distances of small patches hardly tell.

    Args:
        a: [n, c, h, w].
        b: [m, c, h', w'], the reference.
        mask_a: [n, 1, h, w] bool; only filters wholly inside count. None counts all.
        mask_b: the same of ``b``.

    Returns:
        The mean of two numbers: the Wasserstein-1 distance of a filter's magnitudes over their mean
        in ``b``, and the difference of two filters' correlations. NaN where a mask leaves no place.

    Source: after Portilla & Simoncelli 2000, "A parametric texture model based on joint statistics
    of complex wavelet coefficients".
    """
    one, other = _magnitudes(a, mask_a), _magnitudes(b, mask_b)
    if min(one.shape[1], other.shape[1]) < 2:
        return math.nan
    levels = (torch.arange(LEVELS, dtype=torch.double) + 0.5) / LEVELS
    quantiles = [rows.sort(1).values[:, (levels * rows.shape[1]).long()] for rows in (one, other)]
    strength = other.mean(1).clamp_min(1e-6)
    marginals = ((quantiles[0] - quantiles[1]).abs().mean(1) / strength).mean()
    together = (_correlations(one) - _correlations(other)).abs().mean()
    return float(marginals + together) / 2


def _magnitudes(x: Tensor, mask: Tensor | None) -> Tensor:
    """[filters, places] of pictures' greys, at the places where all filters lie inside."""
    radius = math.ceil(WAVELENGTHS[-1])
    if min(x.shape[-2:]) <= 2 * radius:
        return x.new_zeros(len(WAVELENGTHS) * ORIENTATIONS, 0, dtype=torch.double)
    grey = x.double().mean(1, keepdim=True)
    answers = []
    for wavelength in WAVELENGTHS:
        reach = math.ceil(wavelength)
        axis = torch.arange(-reach, reach + 1, dtype=torch.double)
        window = torch.exp(-(axis**2 + axis[:, None] ** 2) / (0.5 * wavelength**2))
        waves = []
        for number in range(ORIENTATIONS):
            angle = math.pi * number / ORIENTATIONS
            along = math.cos(angle) * axis + math.sin(angle) * axis[:, None]
            wave = torch.polar(window, 2 * math.pi / wavelength * along)
            wave = wave - window * (wave.sum() / window.sum())  # no answer to what is uniform
            waves += [wave.real, wave.imag]
        kernel = torch.stack(waves)[:, None] / window.sum()
        inset = radius - reach  # to the places where the widest filter fits as well
        seen = F.pad(grey, (-inset,) * 4)
        pairs = F.conv2d(seen, kernel)
        answers.append(pairs.unflatten(1, (ORIENTATIONS, 2)).norm(dim=2))
    stacked = torch.cat(answers, 1)
    inside = torch.ones_like(stacked[:, 0], dtype=torch.bool)
    if mask is not None:
        outside = F.max_pool2d((~mask).double(), 2 * radius + 1, 1)
        inside = outside[:, 0] == 0
    return stacked.movedim(1, 0)[:, inside]


def _correlations(rows: Tensor) -> Tensor:
    """[k, k] of rows [k, n]; 0 where one does not change."""
    centred = rows - rows.mean(1, keepdim=True)
    scale = centred.norm(dim=1, keepdim=True)
    unit = torch.where(scale > 1e-9, centred / scale.clamp_min(1e-9), 0)
    return unit @ unit.T


def gradient_energy(x: Tensor, *, mask: Tensor | None = None) -> float:
    """Sharpness: the mean square of the difference of neighbours, along x plus along y.

    Args:
        x: [n, c, h, w].
        mask: [n, 1, h, w] bool; only pairs that are both inside count.
    """
    total = 0.0
    for dim in (-1, -2):
        length = x.shape[dim] - 1
        squares = x.diff(dim=dim).double().square()
        inside = torch.ones_like(squares, dtype=torch.bool)
        if mask is not None:
            pairs = mask.narrow(dim, 0, length) & mask.narrow(dim, 1, length)
            inside = pairs.expand_as(squares)
        total += squares[inside].mean().item()
    return total


def contrast(x: Tensor, *, mask: Tensor | None = None) -> float:
    """The standard deviation of the pixels, of each channel around its own mean.

    Args:
        x: [n, c, h, w].
        mask: [n, 1, h, w] bool, pixels that count.
    """
    pixels = x.movedim(1, -1)[mask[:, 0] if mask is not None else ...].reshape(-1, x.shape[1])
    return pixels.double().var(0, correction=0).mean().sqrt().item()


def patch_rows(x: Tensor, patch: int, mask: Tensor | None = None) -> Tensor:
    """Every patch of pictures [n, c, h, w] as a row, [k, c · patch²], wholly inside the mask.

    Raises:
        ValueError: a picture is smaller than a patch.
    """
    if x.ndim != 4 or min(x.shape[-2:]) < patch:
        raise ValueError(
            f"pictures must be [n, c, h, w] with sides of at least {patch}, got {list(x.shape)}; "
            f"lower patch"
        )
    return torch.cat(list(_rows_of_each(x, patch, mask)))


def _rows_of_each(x: Tensor, patch: int, mask: Tensor | None) -> Iterator[Tensor]:
    for number, picture in enumerate(x):
        rows = F.unfold(picture[None], patch)[0].T
        if mask is not None:
            whole = -F.max_pool2d(-mask[number : number + 1].to(x), patch, stride=1)
            rows = rows[whole.flatten() > 0.5]
        yield rows


def _drawn(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Draws at most ``MOST_PATCHES`` of the rows."""
    order = torch.randperm(len(rows), generator=generator)
    return rows[order[:MOST_PATCHES].sort().values.to(rows.device)]


def _quantiles(projections: Tensor, count: int) -> Tensor:
    """Quantiles of each column of [k, d] at ``count`` levels, [count, d]."""
    ordered = projections.sort(0).values
    levels = (torch.arange(count, device=ordered.device) + 0.5) * (len(ordered) / count)
    return ordered[levels.long()]
