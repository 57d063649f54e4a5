import pytest
import torch
from torch import Tensor

from sdslab.denoisers.denoiser import (
    Condition,
    Denoiser,
    Prediction,
)
from sdslab.denoisers.noise_schedule import NoiseSchedule
from sdslab.denoisers.prompts import BACK, FRONT, OTHER_SIDES, VIEW_NAMES
from sdslab.denoisers.wrappers import ClassifierFreeGuidance, PerpendicularNegatives, perpendicular
from sdslab.kernels.sds_gradients import guided_output
from tests.conftest import random_image

OTHERS = torch.tensor([[1, 2], [0, 2], [0, 1]])


class Table(Denoiser):
    """A fixed ε̂ for each prompt, with three channels of variance that must not matter."""

    def __init__(self, rows: Tensor) -> None:
        self.schedule = NoiseSchedule.deepfloyd_if()
        self.rows = rows
        self.batches: list[int] = []

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Prediction:
        assert condition is not None
        assert condition.prompt is not None
        assert len(t) == len(x_t) == len(condition.prompt)
        self.batches.append(len(x_t))
        output = self.rows[condition.prompt]
        return Prediction(torch.cat((output, torch.full_like(output, 9.0)), 1), "epsilon")


def guided(weight: float, low_memory: bool = False) -> tuple[Tensor, Tensor, list[int]]:
    rows = random_image(4, 3, 5, 5, seed=2)
    model = Table(rows)
    denoiser = PerpendicularNegatives(model, 3, OTHERS, 7.0, weight, low_memory=low_memory)
    x_t = torch.zeros(2, 3, 5, 5)
    prediction = denoiser.predict(x_t, torch.tensor([100, 200]), Condition(torch.tensor([0, 2])))
    return prediction.output, rows, model.batches


@pytest.mark.parametrize("low_memory", [False, True])
def test_it_is_the_equation(low_memory: bool):
    actual, rows, batches = guided(1.5, low_memory)
    assert batches == ([2] * 4 if low_memory else [8])
    for sample, prompt in enumerate((0, 2)):
        unconditional = rows[3].flatten().double()
        direction = rows[prompt].flatten().double() - unconditional
        expected = direction.clone()
        for other in OTHERS[prompt].tolist():
            away = rows[other].flatten().double() - unconditional
            expected -= 1.5 * (away - (away @ direction) / (direction @ direction) * direction)
        expected = (unconditional + 7 * expected).float()
        torch.testing.assert_close(actual[sample].flatten(), expected, rtol=1e-5, atol=1e-5)


def test_without_weight_it_is_classifier_free_guidance():
    actual, rows, _ = guided(0.0)
    x_t, t = torch.zeros(2, 3, 5, 5), torch.tensor([100, 200])
    free = ClassifierFreeGuidance(Table(rows), 3, 7.0)
    prediction = free.predict(x_t, t, Condition(torch.tensor([0, 2])))
    expected = guided_output(prediction.output, x_t, prediction.guidance_scale)
    torch.testing.assert_close(actual, expected)


def test_a_negative_along_the_prompt_changes_nothing():
    a, b = random_image(3, 2, 4, 4, seed=1), random_image(3, 2, 4, 4, seed=2)
    left = perpendicular(a, b)
    assert (left * b).flatten(1).sum(1).abs().max() < 1e-4
    torch.testing.assert_close(perpendicular(2.5 * b, b), torch.zeros_like(b), atol=1e-5, rtol=0)
    torch.testing.assert_close(perpendicular(a, torch.zeros_like(b)), a)


def test_no_side_is_its_own_negative():
    assert len(OTHER_SIDES) == len(VIEW_NAMES)
    for side, others in enumerate(OTHER_SIDES):
        assert side not in others
    assert OTHER_SIDES[FRONT][1] == BACK


def test_a_prompt_is_needed():
    denoiser = PerpendicularNegatives(Table(torch.zeros(4, 3, 2, 2)), 3, OTHERS, 7.0, 1.0)
    with pytest.raises(ValueError, match="Perp-Neg needs a condition with a prompt"):
        denoiser.predict(torch.zeros(1, 3, 2, 2), torch.tensor([1]))
