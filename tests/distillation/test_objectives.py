"""Each objective against a few lines of float64, on exact conditional and unconditional models."""

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction
from sdslab.denoisers.mixture import MixtureDenoiser
from sdslab.denoisers.noise_schedule import NoiseSchedule, weighting_named
from sdslab.distillation.inversion import Inversion, inverted, reversed_noise
from sdslab.distillation.objective_gradient import Predictor, distillation_gradient
from sdslab.distillation.objectives import OBJECTIVES, Objective
from sdslab.distillation.sds import sds_gradient
from sdslab.errors import UserError
from sdslab.kernels import NoiseKey, philox_normal

SCHEDULE = NoiseSchedule.deepfloyd_if()
SHAPE = (3, 2, 4)
B = 4
T = torch.tensor([60, 190, 430, 910])
PROMPT = torch.tensor([0, 1, 0, 1])
PROMPTS_OF = {
    "conditional": PROMPT,
    "unconditional": torch.full((B,), 3),
    "negative": torch.full((B,), 2),
}
S = 3.5


def drawn(step: int, samples: int = B) -> Tensor:
    key = NoiseKey(7, step, torch.arange(samples))
    return philox_normal(key, SHAPE, torch.float64)


def mixture() -> MixtureDenoiser:
    return MixtureDenoiser(drawn(1, 12), SCHEDULE, deviation=0.2, labels=torch.arange(12) % 3)


def predictors(model: Denoiser | None = None) -> dict[str, Predictor]:
    model = model or mixture()
    made = {role: Predictor(model, Condition(prompt=row)) for role, row in PROMPTS_OF.items()}
    phi = MixtureDenoiser(drawn(2, 5), SCHEDULE, deviation=0.3)
    return made | {"variational": Predictor(phi)}


def each(values: Tensor) -> Tensor:
    return values.double().view(-1, *[1] * len(SHAPE))


class Scores:
    """ε̂ of each role in float64, from Tweedie's formula and autograd of the log-density."""

    def __init__(self, z: Tensor, n: Tensor, t: Tensor = T) -> None:
        self.t, alpha_bar = t, SCHEDULE.alpha_bars[t]
        self.signal, self.sigma = each(alpha_bar.sqrt()), each((1 - alpha_bar).sqrt())
        self.x_t = self.signal * z + self.sigma * n

    def __call__(self, role: str) -> Tensor:
        predictor = predictors()[role]
        assert isinstance(predictor.denoiser, MixtureDenoiser)
        x_t = self.x_t.clone().requires_grad_()
        log_density = predictor.denoiser.posterior(x_t, self.t, predictor.condition)[1]
        (score,) = torch.autograd.grad(log_density.sum(), x_t)
        return -self.sigma * score


def expected(name: str, z: Tensor, n: Tensor, progress: float) -> Tensor:
    eps = Scores(z, n)
    c, u = eps("conditional"), eps("unconditional")
    guided = u + S * (c - u)
    match name:
        case "sds" | "hifa" | "cfd" | "rfds":
            residual = guided - n
        case "csd":
            residual = S * (c - u)
        case "csd_annealed":
            negative = eps("negative")
            residual = S * (c - (1 - progress / 2) * u - progress / 2 * negative)
        case "nfsd":
            domain = torch.where(each(T) < 200, u, u - eps("negative"))
            residual = S * (c - u) + domain
        case "bridge":
            early = u + 40 * (c - u) - n
            residual = early if progress < 0.5 else S * (c - eps("negative"))
        case "vsd":
            residual = guided - eps("variational")
        case _:
            raise AssertionError(name)
    alpha_bar = each(SCHEDULE.alpha_bars[T])
    weight = {
        "hifa": (1 - alpha_bar).sqrt() / alpha_bar.sqrt(),  # z - x̂_0 itself
        "rfds": 1 + (1 - alpha_bar).sqrt() / alpha_bar.sqrt(),  # v̂ - (n - z)
    }.get(name, 1 - alpha_bar)
    return weight * residual


@pytest.mark.parametrize("progress", [0.0, 0.75])
@pytest.mark.parametrize(
    "name", ["sds", "csd", "csd_annealed", "nfsd", "bridge", "vsd", "hifa", "cfd", "rfds"]
)
def test_each_objective_on_given_noise(name, progress):
    z, n = drawn(3), drawn(4)
    result = distillation_gradient(z, name, predictors(), T, n, progress=progress, guidance=S)
    torch.testing.assert_close(
        result.gradient, expected(name, z, n, progress), rtol=1e-9, atol=1e-9
    )


def test_a_flow_s_residual_is_its_velocity():
    z, n = drawn(3), drawn(4)
    alpha_bar = each(SCHEDULE.alpha_bars[T])
    share = (1 - alpha_bar).sqrt() / (alpha_bar.sqrt() + (1 - alpha_bar).sqrt())
    x_share = (1 - share) * z + share * n
    model = mixture()
    x0_hat = model.x0_hat(x_share * (alpha_bar.sqrt() + (1 - alpha_bar).sqrt()), T,
                          Condition(prompt=PROMPT))  # fmt: skip
    velocity = (x_share - x0_hat) / share
    result = distillation_gradient(z, "rfds", predictors(), T, n, guidance=1.0)
    torch.testing.assert_close(result.gradient, velocity - (n - z), rtol=1e-9, atol=1e-9)


def ddim(z: Tensor, points: list[Tensor], scale: float) -> tuple[Tensor, Tensor]:
    x, eps = z, z
    for here, there in itertools.pairwise(points):
        scores = Scores(z, z, here)
        scores.x_t = x
        c, u = scores("conditional"), scores("unconditional")
        eps = u + scale * (c - u)
        x0 = (x - scores.sigma * eps) / scores.signal
        alpha_bar = each(SCHEDULE.alpha_bars[there])
        x = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
    return x, eps


def test_sdi_compares_z_with_x0_hat_on_its_inverted_noise():
    z = drawn(3)
    objective = OBJECTIVES["sdi"]
    without_eta = Objective(
        objective.source, objective.coefficients, objective.timesteps, objective.guidance,
        objective.weighting, Inversion(10, guidance=-6.5),
    )  # fmt: skip
    x_t, _ = ddim(z, [T * i // 10 for i in range(11)], -6.5)
    scores = Scores(z, z)
    scores.x_t = x_t
    c, u = scores("conditional"), scores("unconditional")
    x0_hat = (x_t - scores.sigma * (u + S * (c - u))) / scores.signal
    result = distillation_gradient(z, without_eta, predictors(), T, drawn(4), guidance=S)
    torch.testing.assert_close(result.gradient, z - x0_hat, rtol=1e-8, atol=1e-8)


def test_ism_compares_two_points_of_its_inversion():
    z = drawn(3)
    before = (T - 65).clamp_min(0)
    x_t, eps_before = ddim(z, [*(before * i // 4 for i in range(5)), T], 0.0)
    scores = Scores(z, z)
    scores.x_t = x_t
    c, u = scores("conditional"), scores("unconditional")
    residual = u + S * (c - u) - eps_before
    result = distillation_gradient(z, "ism", predictors(), T, drawn(4), guidance=S)
    weight = scores.sigma / scores.signal
    torch.testing.assert_close(result.gradient, weight * residual, rtol=1e-8, atol=1e-8)


def test_rfds_rev_is_rfds_on_reversed_noise():
    z, n = drawn(3), drawn(4)
    scores = Scores(z, n)
    c, u = scores("conditional"), scores("unconditional")
    eps = u + S * (c - u)
    x0_hat = (scores.x_t - scores.sigma * eps) / scores.signal
    again = z + eps - x0_hat
    reversed_ = reversed_noise(z, T, SCHEDULE, lambda *_: x0_hat, n)
    torch.testing.assert_close(reversed_, again)
    result = distillation_gradient(z, "rfds_rev", predictors(), T, n, guidance=S)
    rfds = distillation_gradient(z, "rfds", predictors(), T, again, guidance=S)
    torch.testing.assert_close(result.gradient, rfds.gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_sds_is_sds_gradient_bit_for_bit(scale):
    z, n = drawn(3).float(), drawn(4).float()
    made = predictors()

    class Halves(Denoiser):
        schedule = SCHEDULE

        def predict(self, x_t, t, condition=None):  # noqa: ARG002
            halves = [
                made[role].denoiser.predict(x_t, t, made[role].condition).output
                for role in ("unconditional", "conditional")
            ]
            return Prediction(torch.cat(halves), "x0", scale)

    weighting = weighting_named("epsilon_dreamfusion")
    one = sds_gradient(z, Halves(), T, n, weighting=weighting)
    other = distillation_gradient(z, "sds", made, T, n, guidance=scale)
    assert torch.equal(one.nonfinite, other.nonfinite)
    torch.testing.assert_close(other.gradient, one.gradient, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_sample_s_gradient_does_not_depend_on_its_batch(name):
    z, n, made = drawn(3), drawn(4), predictors()
    whole = distillation_gradient(z, name, made, T, n, progress=0.6, guidance=S).gradient

    def of(role: str) -> Predictor:
        condition = made[role].condition
        return Predictor(
            made[role].denoiser,
            None if condition is None else condition.with_prompt(PROMPTS_OF[role][2:3]),
        )

    alone = distillation_gradient(
        z[2:3], name, {role: of(role) for role in made}, T[2:3], n[2:3], progress=0.6, guidance=S
    ).gradient
    torch.testing.assert_close(alone, whole[2:3], rtol=1e-11, atol=1e-11)


class _Epsilon(Denoiser):
    """The same model, predicting ε̂."""

    def __init__(self, model: Denoiser) -> None:
        self.model, self.schedule = model, model.schedule

    def predict(self, x_t, t, condition=None):
        alpha_bar = each(self.schedule.alpha_bar(t))
        x0_hat = self.model.x0_hat(x_t, t, condition)
        return Prediction((x_t - alpha_bar.sqrt() * x0_hat) / (1 - alpha_bar).sqrt(), "epsilon")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_a_model_predicts_does_not_matter(name):
    z, n = drawn(3), drawn(4)
    one, other = (
        distillation_gradient(z, name, predictors(model), T, n, guidance=S).gradient
        for model in (mixture(), _Epsilon(mixture()))
    )
    torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-8)


def test_a_denoiser_of_several_roles_is_run_once():
    calls = []
    model = mixture()

    class Counted(Denoiser):
        schedule = SCHEDULE

        def predict(self, x_t, t, condition=None):
            calls.append(len(x_t))
            return model.predict(x_t, t, condition)

    distillation_gradient(drawn(3), "nfsd", predictors(Counted()), T, drawn(4), guidance=S)
    assert calls == [3 * B]


def test_roles_of_one_denoiser_with_and_without_a_condition():
    """No condition is the unconditional prompt; such roles do not share a batch."""
    z, n, made = drawn(3), drawn(4), predictors()
    bare = made | {"unconditional": Predictor(made["conditional"].denoiser)}
    one, other = (
        distillation_gradient(z, "csd", roles, T, n, guidance=S).gradient for roles in (made, bare)
    )
    torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


FIXED_AT_X_STAR = ("sds", "hifa", "cfd", "rfds", "rfds_rev", "sdi")


@pytest.mark.parametrize("name", FIXED_AT_X_STAR)
def test_with_eq_3_the_gradient_vanishes_at_x_star_alone(name):
    x_star = drawn(5)
    made: Any = {"conditional": Predictor(DegenerateDenoiser(x_star, SCHEDULE))}
    for z, smallest, largest in ((x_star, 0.0, 1e-9), (drawn(3), 1e-3, math.inf)):
        result = distillation_gradient(z, name, made, T, drawn(4), guidance=1.0)
        size = result.gradient.abs().max().item()
        assert smallest <= size <= largest


def test_with_eq_3_ism_vanishes_everywhere():
    """All of the ODE's paths are straight: both points of the inversion predict the same ε̂."""
    made: Any = {"conditional": Predictor(DegenerateDenoiser(drawn(5), SCHEDULE))}
    result = distillation_gradient(drawn(3), "ism", made, T, drawn(4), guidance=1.0)
    assert result.gradient.abs().max() < 1e-9


def test_exact_vsd_of_one_particle_has_sds_s_fixed_point():
    """φ = δ(x − z): ε_φ = n, so that VSD is SDS."""
    x_star, z, n = drawn(5), drawn(3), drawn(4)
    made: Any = {
        "conditional": Predictor(DegenerateDenoiser(x_star, SCHEDULE)),
        "variational": Predictor(DegenerateDenoiser(z, SCHEDULE)),
    }
    vsd = distillation_gradient(z, "vsd", made, T, n, guidance=1.0)
    sds = distillation_gradient(z, "sds", made, T, n, guidance=1.0)
    torch.testing.assert_close(vsd.gradient, sds.gradient, rtol=1e-9, atol=1e-9)


def test_exact_vsd_is_zero_in_the_mean_where_the_particles_are_samples_of_the_prior():
    count, model = 2000, mixture()
    generator = torch.Generator().manual_seed(0)
    component = torch.randint(12, (count,), generator=generator)
    noise = torch.randn(count, *SHAPE, dtype=torch.float64, generator=generator)
    particles = model.means[component] + 0.2 * noise
    phi = MixtureDenoiser(particles, SCHEDULE)
    made: Any = {"conditional": Predictor(model), "variational": Predictor(phi)}
    z, t = particles[:500], torch.full((500,), 700)
    n = torch.randn(500, *SHAPE, dtype=torch.float64, generator=generator)
    vsd, sds = (
        distillation_gradient(z, name, made, t, n, guidance=1.0).gradient for name in ("vsd", "sds")
    )
    assert vsd.square().mean().sqrt() < 0.1 * sds.square().mean().sqrt()


def test_an_inversion_of_a_gaussian_has_a_closed_form():
    """The ODE keeps (x − √ᾱ m) / √(ᾱ σ² + 1 − ᾱ)."""
    mean, z, deviation = drawn(1, 1), drawn(3), 0.5
    model = MixtureDenoiser(mean, SCHEDULE, deviation=deviation)
    alpha_bar, start = each(SCHEDULE.alpha_bars[T]), SCHEDULE.alpha_bars[0]
    spread = [(a * deviation**2 + 1 - a).sqrt() for a in (alpha_bar, start)]
    x_t = alpha_bar.sqrt() * mean + (z - start.sqrt() * mean) * spread[0] / spread[1]
    truth, errors = (x_t - alpha_bar.sqrt() * z) / (1 - alpha_bar).sqrt(), []
    for steps in (15, 60):  # as many as the smallest t has
        n, _ = inverted(z, T, SCHEDULE, lambda x, t: model.x0_hat(x, t), Inversion(steps), z)
        errors.append((n - truth).abs().amax((1, 2, 3)))
    assert (errors[1] < errors[0] / 2.5).all()
    assert (errors[1] < 0.2).all()


@pytest.mark.slow
def test_an_inversion_converges_to_the_ode_in_first_order():
    """Against 9,000 of its steps on a schedule of 10,000."""
    model, z, end = mixture(), drawn(3), 9_000
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    fine = NoiseSchedule((u * math.pi / 2).cos().square())
    precise = MixtureDenoiser(model.means, fine, deviation=0.2, labels=model.labels)
    t, condition = torch.full((B,), end), Condition(prompt=PROMPT)

    def noise_after(steps: int) -> Tensor:
        model = lambda x, t: precise.x0_hat(x, t, condition)  # noqa: E731
        return inverted(z, t, fine, model, Inversion(steps), drawn(4))[0]

    truth, counts = noise_after(end), (40, 160, 640)
    errors = [(noise_after(steps) - truth).square().mean().sqrt().item() for steps in counts]
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert 0.8 < order < 1.3, errors
    assert errors[-1] < 0.03


def test_coefficients_of_0_ask_no_model():
    made: Any = {"conditional": predictors()["conditional"]}
    z, n = drawn(3), drawn(4)
    for name in ("sds", "vsd"):
        some = made if name == "sds" else made | {"variational": predictors()["variational"]}
        distillation_gradient(z, name, some, T, n, guidance=1.0)
    with pytest.raises(UserError, match=r"sds at s = 7.5 needs unconditional.*s = 1 asks no"):
        distillation_gradient(z, "sds", made, T, n, guidance=7.5)
    with pytest.raises(UserError, match=r"nfsd at s = 7.5 needs unconditional, negative predict"):
        distillation_gradient(z, "nfsd", made, T, n)


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"objective must be one of sds, csd, .*, got 'vds'"):
        distillation_gradient(drawn(3), "vds", predictors(), T, drawn(4))
    with pytest.raises(UserError, match="at least 1 step and η within"):
        Inversion(0)
    with pytest.raises(UserError, match="interval must be at least 1, got 0"):
        Inversion(3, interval=0)


def test_the_documentation_has_the_table():
    text = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()
            if line.startswith("| `")]  # fmt: skip
    assert [row[0].strip("`") for row in rows] == list(OBJECTIVES)
    for name, _, _, t, s, weighting, needs in rows:
        objective = OBJECTIVES[name.strip("`")]
        assert float(s) == objective.guidance
        assert weighting == objective.weighting
        assert {need for need in needs.split(", ") if need} == set(objective.needs) - {
            "conditional"
        }
        numbers = {int(number) for number in re.findall(r"\d+", t)}
        bounds = {b for progress in (0.0, 1.0) for b in objective.timesteps.bounds(progress)}
        assert numbers <= bounds


def test_csd_with_eq_3_does_not_depend_on_z():
    made = {
        "conditional": Predictor(DegenerateDenoiser(drawn(5), SCHEDULE)),
        "unconditional": Predictor(DegenerateDenoiser(drawn(6), SCHEDULE)),
    }
    one, other = (
        distillation_gradient(z, "csd", made, T, drawn(4)).gradient for z in (drawn(3), drawn(7))
    )
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
