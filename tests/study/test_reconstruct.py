"""The study's claims, at a size that tests can afford."""

import dataclasses
import json

import pytest
import safetensors.torch
import torch

from sdslab.diffusion_space import LatentSpace
from sdslab.kernels import SDSResult
from sdslab.optimization.optimize import optimize
from sdslab.optimization.optimizer_state import OptimizeConfig
from sdslab.pictures.image_io import load_image
from sdslab.pictures.metrics import psnr_db
from sdslab.study.experiment import Result, Step
from sdslab.study.reconstruct import Cell, CellProgress, Problem, run_cell, with_steps
from sdslab.study.study_file import find_study, load_study

CELLS = {cell.name: cell for cell in load_study(find_study("figure2"), "quick").cells}
SIZE = 64


def run(cell: Cell, problem: Problem, seed: int = 0) -> Result:
    *progress, result = run_cell(cell, problem, seed)
    assert all(isinstance(update, Step) for update in progress)
    assert isinstance(result, Result)
    return result


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem.of("astronaut", load_image("astronaut", SIZE), LatentSpace.load())


@pytest.mark.parametrize("name", ["pixel_rgb", "pixel_rgb_epsilon"])
def test_pixels_reach_float32_s_floor(name: str, problem: Problem):
    result = run(CELLS[name], problem)
    assert result.numbers["psnr"]["theta"][0] >= 140
    assert result.numbers["latent_mse"] is None
    assert "decoded" not in result.tensors


def test_at_the_floor_every_update_rounds_away(problem: Problem):
    theta = run(CELLS["pixel_rgb"], problem).tensors["theta"]
    assert not theta.equal(problem.image)
    z_gradient = (2 * theta - 1) - (2 * problem.image - 1)
    update = CELLS["pixel_rgb"].optimization.learning_rate * 2 * z_gradient
    assert update.abs().max() > 0
    assert (theta - update).equal(theta)


def test_float64_pixels_go_far_past_200_db():
    problem = Problem.of("astronaut", load_image("astronaut", SIZE).double(), None)
    assert run(CELLS["pixel_rgb"], problem).numbers["psnr"]["theta"][0] > 250


@pytest.mark.parametrize("name", ["latent_rgb", "latent_rgb_grey"])
def test_latent_diffusion_finds_the_latent_but_not_the_picture(name: str, problem: Problem):
    result = run(CELLS[name], problem)
    assert result.numbers["latent_mse"] is not None
    assert result.numbers["latent_mse_start"] is not None
    assert result.numbers["vae_ceiling_db"] is not None
    assert result.numbers["psnr"]["theta"][0] < 12
    assert result.numbers["psnr"]["decoded"][0] == pytest.approx(
        result.numbers["vae_ceiling_db"], abs=0.5
    )
    assert result.numbers["latent_mse"] < 1e-3 * result.numbers["latent_mse_start"]


@pytest.mark.parametrize("limited", [True, False], ids=["as the cell is", "without its limit"])
def test_one_enormous_gradient_does_not_stall_the_cell_from_grey(limited: bool):
    """What an encoder with group normalisation answers a constant picture with."""
    config = OptimizeConfig(**dataclasses.asdict(CELLS["latent_rgb_grey"].optimization))
    if not limited:
        config = dataclasses.replace(config, gradient_norm_limit=float("inf"))
    target = torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
    theta = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)

    def gradient(z: torch.Tensor, index: int) -> SDSResult:
        factor = 1e6 if index == 0 else 20.0
        zeros = torch.zeros(1, dtype=torch.int64)
        return SDSResult(factor * (z - target), torch.zeros(1), zeros)

    for _ in optimize([theta], lambda _: theta, gradient, config):
        pass
    assert ((theta - target).abs().max() < 0.05) == limited


def test_optimising_the_latent_itself_reaches_the_ceiling(problem: Problem):
    result = run(CELLS["latent_direct"], problem)
    assert result.numbers["psnr"]["theta"][0] == pytest.approx(
        result.numbers["vae_ceiling_db"], abs=0.01
    )


def test_the_ceiling_s_cell_takes_no_step(problem: Problem):
    result = run(CELLS["vae_ceiling"], problem)
    assert result.numbers["steps"] == 0
    assert result.numbers["psnr"]["theta"][0] == result.numbers["vae_ceiling_db"]
    assert problem.vae_ceiling is not None
    assert result.numbers["vae_ceiling_db"] == psnr_db(problem.vae_ceiling, problem.image)


@pytest.mark.parametrize("name", ["pixel_dip", "latent_dip"])
def test_a_deep_image_prior_improves_steadily(name: str, problem: Problem):
    cell = dataclasses.replace(with_steps(CELLS[name], 30), width=16)
    result = run(cell, problem)
    psnrs = [psnr for _, psnr in result.numbers["curve"]]
    assert psnrs[-1] > psnrs[0] + 3


def test_the_curve_runs_from_the_first_step_to_the_result(problem: Problem):
    result = run(with_steps(CELLS["pixel_rgb"], 20), problem)
    assert result.numbers["curve"][0][0] == 0
    assert result.numbers["curve"][-1] == (20, result.numbers["psnr"]["theta"][0])
    assert [step for step, _ in result.numbers["curve"]] == sorted(
        {step for step, _ in result.numbers["curve"]}
    )


@pytest.mark.parametrize("name", ["pixel_rgb", "latent_rgb", "latent_direct", "pixel_dip"])
def test_the_seed_decides_the_result(name: str, problem: Problem):
    cell = dataclasses.replace(with_steps(CELLS[name], 2), width=8)
    one, same, other = (run(cell, problem, seed).tensors["theta"] for seed in (1, 1, 2))
    assert one.equal(same)
    assert not one.equal(other)


def test_lbfgs_solves_the_pixel_cell_in_a_few_steps(problem: Problem):
    optimization = dataclasses.replace(
        CELLS["pixel_rgb"].optimization, optimizer="lbfgs", learning_rate=1.0, steps=5
    )
    cell = dataclasses.replace(CELLS["pixel_rgb"], optimization=optimization)
    assert run(cell, problem).numbers["psnr"]["theta"][0] > 120


def test_global_random_state_is_never_touched(problem: Problem):
    state = torch.get_rng_state()
    run(dataclasses.replace(with_steps(CELLS["latent_dip"], 2), width=8), problem)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("name", sorted(CELLS))
def test_a_cell_that_was_stopped_ends_bit_for_bit_the_same(name: str, problem: Problem):
    cell = with_steps(CELLS[name], 4)
    straight = run(cell, problem)
    for stop in (1, 3):
        progress = CellProgress()
        updates = run_cell(cell, problem, 0, progress)
        for _ in range(max(1, min(stop, straight.numbers["steps"]))):
            next(updates)
        updates.close()  # pyright: ignore[reportAttributeAccessIssue]
        tensors, numbers = progress.snapshot()
        tensors = safetensors.torch.load(safetensors.torch.save(tensors))
        *_, result = run_cell(
            cell, problem, 0, CellProgress(tensors, json.loads(json.dumps(numbers)))
        )
        assert isinstance(result, Result)
        assert result.tensors.keys() == straight.tensors.keys()
        assert all(result.tensors[name].equal(image) for name, image in straight.tensors.items())
        assert result.numbers | {"seconds": 0} == straight.numbers | {"seconds": 0}
