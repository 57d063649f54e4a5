"""Score distillation sampling: CasTex Eq. 1, in x0-form and in ε-form."""

import torch

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.denoiser import Condition, Denoiser
from sdslab.denoisers.noise_schedule import Weighting
from sdslab.kernels import (
    NoiseKey,
    SDSResult,
    degenerate_sds_gradient,
    perturb,
    philox_normal,
)
from sdslab.kernels import sds_gradient as sds_gradient_kernel
from sdslab.tensor_types import Diffused, Timesteps


@torch.no_grad()
def sds_gradient(
    z: Diffused,
    denoiser: Denoiser,
    t: Timesteps,
    noise: torch.Tensor | NoiseKey,
    *,
    weighting: Weighting,
    condition: Condition | None = None,
    clamp: float | None = None,
) -> SDSResult:
    """The gradient of Eq. 1 with respect to z: w (z − x̂_0(z_t; y, t)), or w_ε (ε̂ − ε).

    No graph is made: pass the gradient to ``z.backward(gradient)``.

    Args:
        z: clean samples [b, c, *spatial] in the diffusion space.
        denoiser: predicts x̂_0, ε̂ or v̂.
        t: a timestep per sample, [b].
        noise: ε like z, or the key of the counter-based generator that draws it.
        weighting: w(t) and the form it belongs to.
        condition: passed to the denoiser.
        clamp: bounds x̂_0 to [−clamp, clamp]; CasTex uses 1 in pixel space. None leaves it.

    Returns:
        The gradient like z (float32, or float64 for float64 z), and per sample the scalar whose
        derivative it is and the count of non-finite values.

    Source: CasTex Eq. 1 (arXiv 2504.06856); ε-form: DreamFusion Eq. 3 (arXiv 2209.14988).
    """
    alpha_bar = denoiser.schedule.alpha_bar(t)
    if isinstance(noise, NoiseKey) and z.device.type == "cpu":
        # To draw it twice costs more there than to keep it.
        dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
        noise = philox_normal(noise, tuple(z.shape[1:]), dtype, z.device)
    z_t = perturb(z, alpha_bar, noise)
    prediction = denoiser.predict(z_t, t, condition)
    return sds_gradient_kernel(
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
    t: Timesteps,
    *,
    weighting: Weighting,
    clamp: float | None = None,
) -> SDSResult:
    """`sds_gradient` of Eq. 3's denoiser in closed form: the noise cancels and is not drawn.

    With w = 1 in x0-form this is z − x*, half the gradient of ‖z − x*‖².

    Source: CasTex Eq. 4–5 (arXiv 2504.06856).
    """
    alpha_bar = denoiser.schedule.alpha_bar(t)
    return degenerate_sds_gradient(
        z, denoiser.x_star, alpha_bar, weighting(alpha_bar), form=weighting.form, clamp=clamp
    )
