import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from sdslab.denoisers.noise_schedule import (
    WEIGHTINGS,
    NoiseSchedule,
    SqrtAnnealedTimesteps,
    UniformTimesteps,
    weighting_named,
)
from sdslab.errors import UserError
from sdslab.kernels import NoiseKey

# ᾱ to three decimals.
IF_ALPHA_BARS = {20: 0.998, 200: 0.898, 300: 0.786, 500: 0.492, 750: 0.143, 900: 0.024, 979: 0.001}
SD_ALPHA_BARS = {200: 0.754, 300: 0.590, 500: 0.276, 980: 0.006}


@pytest.mark.parametrize(
    ("schedule", "config", "expected"),
    [
        (NoiseSchedule.deepfloyd_if(), {"beta_schedule": "squaredcos_cap_v2"}, IF_ALPHA_BARS),
        (
            NoiseSchedule.stable_diffusion(),
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
            SD_ALPHA_BARS,
        ),
    ],
    ids=["deepfloyd", "stable-diffusion"],
)
def test_built_in_schedules_are_diffusers_and_have_the_published_values(
    schedule: NoiseSchedule, config: dict, expected: dict[int, float]
):
    assert schedule.alpha_bars.equal(DDPMScheduler(1000, **config).alphas_cumprod.double())
    alpha_bars = schedule.alpha_bar(torch.tensor(list(expected)))
    torch.testing.assert_close(
        alpha_bars, torch.tensor(list(expected.values())).double(), atol=6e-4, rtol=0
    )


@pytest.mark.parametrize("scheduler_class", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_any_diffusers_config_gives_its_own_alpha_bar(
    scheduler_class, beta_schedule, tmp_path: Path
):
    scheduler = scheduler_class(num_train_timesteps=50, beta_schedule=beta_schedule)
    scheduler.save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "scheduler_config.json", dict(scheduler.config)):
        schedule = NoiseSchedule.from_scheduler_config(source)
        assert schedule.alpha_bars.equal(scheduler.alphas_cumprod.double())


def test_schedulers_without_alpha_bar_are_refused(tmp_path: Path):
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler, which has none"):
        NoiseSchedule.from_scheduler_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "readable scheduler_config.json"),
        (json.dumps({"_class_name": "NoSuchScheduler"}), "no scheduler named 'NoSuchScheduler'"),
        (json.dumps({"beta_schedule": "zigzag"}), "not one of DDPMScheduler's"),
    ],
    ids=["not-json", "unknown-class", "unknown-schedule"],
)
def test_bad_configs_are_refused(content: str, message: str, tmp_path: Path):
    (tmp_path / "scheduler_config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        NoiseSchedule.from_scheduler_config(tmp_path)


def test_alpha_bar_outside_the_open_interval_is_refused():
    with pytest.raises(ValueError, match=r"within \(0, 1\) and falling, got 0.5 to 0;"):
        NoiseSchedule(torch.tensor([0.5, 0.0]))


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 999),
    bounds=st.tuples(st.integers(0, 998), st.integers(1, 999)).filter(lambda b: b[0] < b[1]),
)
def test_uniform_timesteps_stay_in_range_and_do_not_depend_on_the_batch(seed, step, bounds):
    sampler = UniformTimesteps(*bounds)
    t = sampler(NoiseKey(seed, step, torch.arange(5)), step / 1000)
    assert ((t >= bounds[0]) & (t < bounds[1])).all()
    assert sampler(NoiseKey(seed, step, torch.tensor([3])), step / 1000).item() == t[3]


def test_uniform_timesteps_cover_their_range_evenly():
    t = UniformTimesteps(10, 20)(NoiseKey(0, 0, torch.arange(20_000)), 0.0)
    counts = torch.bincount(t, minlength=20)
    assert counts[:10].sum() == 0
    torch.testing.assert_close(
        counts[10:].double(), torch.full((10,), 2000.0).double(), atol=200, rtol=0
    )


def test_shared_timesteps_are_one_for_the_batch():
    t = UniformTimesteps()(NoiseKey(0, 3, torch.arange(8)), 0.0, shared=True)
    assert t.unique().numel() == 1


def test_sqrt_annealing_is_castex_s():
    sampler = SqrtAnnealedTimesteps()
    for step in (0, 1, 10, 250, 499):
        fraction = step / 500
        expected = int(300 - 100 * fraction**0.5), int(980 - 480 * fraction**0.5)
        assert sampler.bounds(fraction) == expected
    assert sampler.bounds(1.0) == (200, 500)


def test_empty_ranges_are_refused():
    with pytest.raises(UserError, match="t_min < t_max, got 5 and 5"):
        UniformTimesteps(5, 5)


def test_castex_weighting_in_x0_form_is_dreamfusion_s_in_epsilon_form():
    alpha_bar = torch.linspace(0.01, 0.99, 99).double()
    x0_form = WEIGHTINGS["x0_castex"](alpha_bar)
    epsilon_form = WEIGHTINGS["epsilon_dreamfusion"](alpha_bar)
    torch.testing.assert_close(epsilon_form, x0_form * ((1 - alpha_bar) / alpha_bar).sqrt())


def test_weightings_name_their_form():
    assert all(name.startswith(weighting.form) for name, weighting in WEIGHTINGS.items())
    with pytest.raises(UserError, match=r"one of x0_unit, x0_castex, .*, got 'unit'"):
        weighting_named("unit")
