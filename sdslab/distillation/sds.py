"""Score distillation sampling: CasTex Eq. 1, in x0-form and in ε-form."""

from collections.abc import Callable
from typing import Any

import torch

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.denoiser import Condition, Denoiser, require_denoiser
from sdslab.denoisers.noise_schedule import Weighting, timesteps_for, weighting_named
from sdslab.errors import UserError
from sdslab.kernels import (
    NoiseKey,
    SDSResult,
    degenerate_sds_gradient,
    perturb,
    sds_gradient_from_output,
)
from sdslab.kernels.philox import checked_noise, drawn_noise
from sdslab.kernels.validation import require_samples, require_type
from sdslab.shell.named_inputs import is_named_object, named_object
from sdslab.tensor_types import Diffused, Timesteps


@torch.no_grad()
def sds_gradient(
    z: Diffused,
    denoiser: Denoiser,
    t: Timesteps | int,
    noise: torch.Tensor | NoiseKey,
    *,
    weighting: Weighting | str,
    condition: Condition | None = None,
    clamp: float | None = None,
) -> SDSResult:
    """The gradient of Eq. 1 with respect to z: w (z − x̂_0(z_t; y, t)), or w_ε (ε̂ − ε).

    No graph is made: pass the gradient to ``z.backward(gradient)``.

    Args:
        z: clean samples [b, c, *spatial] in the diffusion space.
        denoiser: predicts x̂_0, ε̂ or v̂.
        t: a timestep per sample, [b], or one for all.
        noise: ε like z, or the key of the counter-based generator that draws it.
        weighting: w(t) and the form it belongs to, or its name in ``WEIGHTINGS``.
        condition: passed to the denoiser.
        clamp: bounds x̂_0 to [−clamp, clamp]; CasTex uses 1 in pixel space. None leaves it.

    Returns:
        The gradient like z (float32, or float64 for float64 z), and per sample the scalar whose
        derivative it is and the count of non-finite values.

    Raises:
        TypeError, ValueError: an argument or the denoiser's prediction is not what it must be.

    Source: CasTex Eq. 1 (arXiv 2504.06856); ε-form: DreamFusion Eq. 3 (arXiv 2209.14988).
    """
    require_denoiser("denoiser", denoiser)
    t, weighting = timesteps_for(t, z), weighting_named(weighting)
    alpha_bar = denoiser.schedule.alpha_bar(t)
    require_samples("z", z, min_dims=2)
    if z.device.type == "cpu":
        # To draw it twice costs more there than to keep it.
        noise = drawn_noise(checked_noise(noise, z), z)
    z_t = perturb(z, alpha_bar, noise)
    prediction = denoiser.checked_prediction(z_t, t, condition)
    return sds_gradient_from_output(
        z,
        prediction.output,
        alpha_bar,
        weighting(alpha_bar),
        noise,
        guidance_scale=prediction.guidance_scale,
        prediction_type=prediction.prediction_type,
        form=weighting.form,
        clamp=clamp,
    )


@torch.no_grad()
def exact_sds_gradient(
    z: Diffused,
    denoiser: DegenerateDenoiser,
    t: Timesteps | int,
    *,
    weighting: Weighting | str,
    clamp: float | None = None,
) -> SDSResult:
    """`sds_gradient` of Eq. 3's denoiser in closed form: the noise cancels and is not drawn.

    With w = 1 in x0-form this is z − x*, half the gradient of ‖z − x*‖².

    Source: CasTex Eq. 4–5 (arXiv 2504.06856).
    """
    advice = "sds_gradient takes any denoiser"
    require_type("denoiser", denoiser, DegenerateDenoiser, advice)
    t, weighting = timesteps_for(t, z), weighting_named(weighting)
    alpha_bar = denoiser.schedule.alpha_bar(t)
    return degenerate_sds_gradient(
        z, denoiser.x_star, alpha_bar, weighting(alpha_bar), form=weighting.form, clamp=clamp
    )


def own_objective(given: str) -> Callable[..., SDSResult] | None:
    """The user's function in place of `sds_gradient`; None where none is named.

    It raises `UserError` where it gives no `SDSResult` with a gradient like z.
    """
    if not is_named_object(given):
        return None
    function = named_object(given, "objective")
    if not callable(function):
        raise UserError(
            f"objective must name a function, got a {type(function).__name__}, {given}; see "
            f"examples/own_study.py"
        )

    def objective(z: torch.Tensor, *arguments: Any, **options: Any) -> SDSResult:
        result = function(z, *arguments, **options)
        if not isinstance(result, SDSResult) or result.gradient.shape != z.shape:
            raise UserError(
                f"objective {given} must give an SDSResult with a gradient of shape "
                f"{list(z.shape)}, got a {type(result).__name__}; see examples/own_study.py"
            )
        return result

    return objective
