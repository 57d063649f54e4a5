"""Reconstruction quality: MSE and PSNR, accumulated in float64."""

import math

import torch


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
