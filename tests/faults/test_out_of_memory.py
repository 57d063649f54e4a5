from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from sdslab.kernels import SDSResult
from sdslab.machine import out_of_memory_message
from sdslab.optimization.optimizer_state import OptimizerState
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.runs.checkpoint import Checkpoints
from tests.faults import small_run
from tests.faults.small_run import STAGES, identity, result_path, run, save, steps_of


def test_what_was_reached_is_saved_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gradient_of = small_run.gradient_of

    def hungry(stage: int, condition: Tensor):
        gradient = gradient_of(stage, condition)

        def limited(z: Tensor, index: int) -> SDSResult:
            if index == 17:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return gradient(z, index)

        return limited

    folder = tmp_path / "run"
    theta, state = TexelGrid(torch.full((8, 8, 8), 0.5)), OptimizerState()
    condition = theta.texels.detach().clone()
    with monkeypatch.context() as patch:
        patch.setattr(small_run, "gradient_of", hungry)
        steps = steps_of(0, theta, condition, state)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            list(steps)
    message = out_of_memory_message(caught.value, "give --low-memory")
    assert message is not None
    assert "2.00 GiB" in message
    assert "--low-memory" in message
    assert state.index == 17 < STAGES[0].steps
    save(Checkpoints(folder, identity()), 0, condition, state)

    run(folder)
    run(tmp_path / "uninterrupted")
    maps, expected = (
        safetensors.torch.load_file(result_path(f))["maps"]
        for f in (folder, tmp_path / "uninterrupted")
    )
    assert maps.equal(expected)
