"""The recorded denoiser predicts the same through its buffers; captured where there is a GPU."""

import pytest
import torch
from torch import Tensor

from sdslab.denoisers.denoiser import ClassifierFreeGuidance, Condition, Denoiser, Prediction
from sdslab.denoisers.graphed import GraphedDenoiser
from sdslab.denoisers.noise_schedule import DEEPFLOYD_IF, NoiseSchedule
from sdslab.errors import UserError

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]


class Linear(Denoiser):
    """Depends on all that it is given."""

    def __init__(self, device: str) -> None:
        self.schedule = NoiseSchedule.from_scheduler_config(DEEPFLOYD_IF)
        self.rows = torch.arange(4.0, device=device)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Prediction:
        assert condition is not None
        assert condition.prompt is not None
        assert condition.low_resolution is not None
        prompt = self.rows[condition.prompt].view(-1, 1, 1, 1)
        return Prediction(
            x_t * prompt + t.view(-1, 1, 1, 1) / 1000 - condition.low_resolution, "epsilon"
        )


def inputs(step: int, device: str, batch: int = 2) -> tuple[Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(step)
    x_t, low = torch.randn(2, batch, 3, 4, 4, generator=generator).to(device)
    t = torch.randint(1000, (batch,), generator=generator).to(device)
    prompt = torch.randint(3, (batch,), generator=generator).to(device)
    return x_t, t, Condition(prompt=prompt, low_resolution=low)


@pytest.mark.parametrize("device", DEVICES)
def test_each_step_s_prediction_is_the_ordinary_one(device: str):
    guided = ClassifierFreeGuidance(Linear(device), unconditional=3, scale=7.0)
    graphed = GraphedDenoiser(guided, torch.device(device))
    assert graphed.schedule is guided.schedule
    for step in range(4):
        x_t, t, condition = inputs(step, device)
        ordinary = guided.predict(x_t, t, condition)
        prediction = graphed.predict(x_t, t, condition)
        assert prediction.output.equal(ordinary.output), step
        assert prediction.prediction_type == "epsilon"
        assert prediction.guidance_scale == 7.0


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_given_is_not_written_to(device: str):
    graphed = GraphedDenoiser(Linear(device), torch.device(device))
    first, second = inputs(0, device), inputs(1, device)
    before = first[0].clone()
    graphed.predict(*first)
    graphed.predict(*second)
    assert first[0].equal(before)


def test_another_shape_or_condition_is_refused():
    graphed = GraphedDenoiser(Linear("cpu"), torch.device("cpu"))
    graphed.predict(*inputs(0, "cpu"))
    with pytest.raises(UserError, match=r"was recorded with.*got .*\[3, 3, 4, 4\].*leave --graph"):
        graphed.predict(*inputs(0, "cpu", batch=3))
    x_t, t, condition = inputs(0, "cpu")
    with pytest.raises(UserError, match="was recorded with"):
        graphed.predict(x_t, t, Condition(prompt=condition.prompt))
