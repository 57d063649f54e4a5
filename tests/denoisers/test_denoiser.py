import pytest
import torch
from torch import Tensor

from sdslab.denoisers.denoiser import (
    ClassifierFreeGuidance,
    Denoiser,
    Prediction,
    guided_output,
    x0_from,
)
from sdslab.denoisers.noise_schedule import DEEPFLOYD_IF, NoiseSchedule
from tests.conftest import random_image


class ConditionEchoes(Denoiser):
    """Predicts its condition as ε̂."""

    def __init__(self) -> None:
        self.schedule = NoiseSchedule.from_scheduler_config(DEEPFLOYD_IF)
        self.batches: list[int] = []

    def predict(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Prediction:
        assert condition is not None
        assert len(x_t) == len(t) == len(condition)
        self.batches.append(len(x_t))
        return Prediction(condition.view(-1, 1, 1, 1).expand_as(x_t), "epsilon")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v", "x0"])
def test_every_prediction_type_leads_to_the_same_x0(prediction_type):
    x0 = random_image(3, 2, 4, 5, seed=1, dtype=torch.float64)
    eps = random_image(3, 2, 4, 5, seed=2, dtype=torch.float64)
    alpha_bar = torch.tensor([0.1, 0.5, 0.9]).double()
    a, s = (rate.sqrt().view(-1, 1, 1, 1) for rate in (alpha_bar, 1 - alpha_bar))
    output = {"epsilon": eps, "v": a * eps - s * x0, "x0": x0}[prediction_type]
    torch.testing.assert_close(x0_from(prediction_type, output, a * x0 + s * eps, alpha_bar), x0)


def test_guidance_runs_both_halves_in_one_batch_and_extrapolates():
    model = ConditionEchoes()
    guided = ClassifierFreeGuidance(model, unconditional=torch.tensor([[1.0]]), scale=7.5)
    x_t = torch.zeros(2, 3, 4, 4)
    t = torch.tensor([100, 900])
    prediction = guided.predict(x_t, t, torch.tensor([[3.0], [5.0]]))
    assert model.batches == [4]
    expected = torch.tensor([1 + 7.5 * 2, 1 + 7.5 * 4]).view(2, 1, 1, 1).expand_as(x_t)
    torch.testing.assert_close(guided_output(prediction, x_t), expected)
    torch.testing.assert_close(guided.epsilon_hat(x_t, t, torch.tensor([[3.0], [5.0]])), expected)


def test_guidance_without_a_condition_is_refused():
    guided = ClassifierFreeGuidance(ConditionEchoes(), torch.zeros(1, 1), 2.0)
    with pytest.raises(ValueError, match="needs a condition"):
        guided.predict(torch.zeros(1, 3, 2, 2), torch.tensor([1]))


def test_learned_variance_channels_are_dropped():
    output = random_image(2, 6, 4, 4)
    prediction = Prediction(output, "epsilon")
    assert guided_output(prediction, torch.zeros(2, 3, 4, 4)).equal(output[:, :3])
