"""The optimal denoiser of a distribution with one mode: CasTex Eq. 3."""

from typing import Literal, final

from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction
from sdslab.denoisers.noise_schedule import NoiseSchedule
from sdslab.kernels.validation import (
    require_like,
    require_one_of,
    require_samples,
    require_type,
)
from sdslab.tensor_types import Diffused, Timesteps


@final
class DegenerateDenoiser(Denoiser):
    """ε̂(x_t) = (x_t − √ᾱ_t x*) / √(1−ᾱ_t), the exact score of the distribution δ(x − x*).

    Args:
        x_star: x*, the only sample there is, [1 or b, c, *spatial], in the diffusion space.
        schedule: the forward process.
        prediction_type: "epsilon" states Eq. 3 as the paper does, with its rounding; "x0" returns
            x̂_0 = x*, which is the same in exact arithmetic.

    Source: CasTex Eq. 3 (arXiv 2504.06856).
    """

    def __init__(
        self,
        x_star: Diffused,
        schedule: NoiseSchedule,
        prediction_type: Literal["epsilon", "x0"] = "epsilon",
    ) -> None:
        require_samples("x_star", x_star, min_dims=2)
        require_type("schedule", schedule, NoiseSchedule, "NoiseSchedule.deepfloyd_if(), say")
        require_one_of("prediction_type", prediction_type, ("epsilon", "x0"))
        self.x_star, self.schedule = x_star, schedule
        self.prediction_type: Literal["epsilon", "x0"] = prediction_type

    def predict(
        self, x_t: Diffused, t: Timesteps, condition: Condition | None = None
    ) -> Prediction:
        del condition  # there is one sample, whatever is asked for
        shapes = ([*x_t.shape], [1, *x_t.shape[1:]])
        require_like("x_star", self.x_star, x_t, shapes, "encode it as x_t was")
        x_star = self.x_star.expand_as(x_t)
        if self.prediction_type == "x0":
            return Prediction(x_star, "x0")
        alpha_bar = self.schedule.alpha_bar(t).to(x_t).view(-1, *[1] * (x_t.ndim - 1))
        return Prediction((x_t - alpha_bar.sqrt() * x_star) / (1 - alpha_bar).sqrt(), "epsilon")
