import pytest
import torch
from torch import Tensor

from sdslab.denoisers.denoiser import (
    Condition,
    Denoiser,
    Prediction,
)
from sdslab.denoisers.noise_schedule import NoiseSchedule
from sdslab.denoisers.wrappers import ClassifierFreeGuidance
from sdslab.kernels.sds_gradients import guided_output, x0_from
from tests.conftest import random_image


class PromptEchoes(Denoiser):
    """Predicts its prompt's row as ε̂."""

    def __init__(self) -> None:
        self.schedule = NoiseSchedule.deepfloyd_if()
        self.batches: list[int] = []

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Prediction:
        assert condition is not None
        assert condition.prompt is not None
        assert len(x_t) == len(t) == len(condition.prompt)
        if condition.low_resolution is not None:
            assert len(condition.low_resolution) == len(x_t)
        self.batches.append(len(x_t))
        return Prediction(condition.prompt.float().view(-1, 1, 1, 1).expand_as(x_t), "epsilon")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v", "x0", "flow"])
def test_every_prediction_type_leads_to_the_same_x0(prediction_type):
    x0 = random_image(3, 2, 4, 5, seed=1, dtype=torch.float64)
    eps = random_image(3, 2, 4, 5, seed=2, dtype=torch.float64)
    alpha_bar = torch.tensor([0.1, 0.5, 0.9]).double()
    a, s = (rate.sqrt().view(-1, 1, 1, 1) for rate in (alpha_bar, 1 - alpha_bar))
    output = {"epsilon": eps, "v": a * eps - s * x0, "x0": x0, "flow": eps - x0}[prediction_type]
    torch.testing.assert_close(x0_from(prediction_type, output, a * x0 + s * eps, a, s), x0)


@pytest.mark.parametrize("low_memory", [False, True])
def test_guidance_runs_both_halves_and_extrapolates(low_memory):
    model = PromptEchoes()
    guided = ClassifierFreeGuidance(model, unconditional=1, scale=7.5, low_memory=low_memory)
    x_t = torch.zeros(2, 3, 4, 4)
    t = torch.tensor([100, 900])
    condition = Condition(prompt=torch.tensor([3, 5]), low_resolution=x_t)
    prediction = guided.predict(x_t, t, condition)
    assert model.batches == ([2, 2] if low_memory else [4])
    expected = torch.tensor([1 + 7.5 * 2, 1 + 7.5 * 4]).view(2, 1, 1, 1).expand_as(x_t)
    output = guided_output(prediction.output, x_t, prediction.guidance_scale)
    torch.testing.assert_close(output, expected)
    alpha_bar = model.schedule.alpha_bar(t).view(2, 1, 1, 1)
    x0_hat = -((1 - alpha_bar) / alpha_bar).sqrt() * expected  # of x_t = 0
    torch.testing.assert_close(guided.x0_hat(x_t, t, condition), x0_hat.float())


def test_guidance_without_a_prompt_is_refused():
    guided = ClassifierFreeGuidance(PromptEchoes(), 0, 2.0)
    for condition in (None, Condition(low_resolution=torch.zeros(1, 3, 2, 2))):
        with pytest.raises(ValueError, match="needs a condition with a prompt"):
            guided.predict(torch.zeros(1, 3, 2, 2), torch.tensor([1]), condition)


def test_learned_variance_channels_are_dropped():
    output = random_image(2, 6, 4, 4)
    assert guided_output(output, torch.zeros(2, 3, 4, 4), 1.0).equal(output[:, :3])
