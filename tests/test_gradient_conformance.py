"""Right gradients in many conventions are told apart, and a dozen wrong ones are named."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab import pytest_plugin
from sdslab.denoisers.denoiser import Denoiser, Prediction
from sdslab.denoisers.noise_schedule import WEIGHTINGS, NoiseSchedule
from sdslab.distillation.sds import sds_gradient
from sdslab.gradient_conformance import ProbeModel, conformance, gradient_of_loss

pytest_plugins = ["pytester"]
SCHEDULE = NoiseSchedule.stable_diffusion()
S = 7.5


def rates(t: Tensor, schedule: NoiseSchedule = SCHEDULE) -> tuple[Tensor, Tensor, Tensor]:
    alpha_bar = schedule.alpha_bars[t].float().view(-1, 1, 1, 1)
    return alpha_bar, alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def written_out(
    *,
    s: float = S,
    weight: Callable[[Tensor], Tensor] = lambda a: 1 - a,
    factor: Callable[[Tensor], float] = lambda _: 1.0,
    noised_at: int = 0,
    asked_at: int = 0,
    subtracted: float = 1.0,
    redrawn: bool = False,
    of_z: float = 0.0,
    clamp: float | None = None,
    swapped: bool = False,
) -> Callable[[Tensor, ProbeModel, Tensor, Tensor], Tensor]:
    """Eq. 1 as threads and courses write it, with one place each to go wrong."""

    def gradient(z: Tensor, model: ProbeModel, t: Tensor, noise: Tensor) -> Tensor:
        _, signal, sigma = rates(t + noised_at)
        if redrawn:
            noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
        x_t = signal * z + sigma * noise
        both = model(torch.cat([x_t] * 2), torch.cat([t + asked_at] * 2),
                     torch.tensor([swapped] * len(z) + [not swapped] * len(z)))  # fmt: skip
        unconditional, conditional = both.chunk(2)
        eps = unconditional + s * (conditional - unconditional)
        alpha_bar, signal, sigma = rates(t)
        residual = eps - subtracted * noise
        if clamp is not None:
            x0_hat = ((x_t - sigma * eps) / signal).clamp(-clamp, clamp)
            residual = (z - x0_hat) * signal / sigma
        return factor(z) * weight(alpha_bar) * residual + of_z * z

    return gradient


class _AsDenoiser(Denoiser):
    def __init__(self, model: ProbeModel, scale: float) -> None:
        self.model, self.scale, self.schedule = model, scale, SCHEDULE

    def predict(self, x_t, t, condition=None):  # noqa: ARG002
        halves = [self.model(x_t, t, conditional=which) for which in (False, True)]
        return Prediction(torch.cat(halves), "epsilon", self.scale)


@pytest.mark.parametrize(
    ("weighting", "words"),
    [
        ("epsilon_dreamfusion", "1-ᾱ (DreamFusion"),
        ("x0_castex", "1-ᾱ (DreamFusion"),
        ("epsilon_unit", "1 (in ε-form)"),
        ("x0_unit", "1 in x0-form: CasTex Eq. 4"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ours_is_sds_by_any_weighting(weighting, words, dtype):
    def gradient(z, model, t, noise):
        return sds_gradient(
            z, _AsDenoiser(model, S), t, noise, weighting=WEIGHTINGS[weighting]
        ).gradient

    found = conformance(gradient, guidance=S, dtype=dtype)
    assert found.is_sds, found
    assert words in found.weighting
    assert found.factor == ""
    assert found.guidance == pytest.approx(S, rel=1e-4)
    assert "as said" in found.convention


def loss_of(reduction: str, halved: bool):
    """threestudio's: the squared error to a target that no gradient enters."""

    def loss(z: Tensor, model: ProbeModel, t: Tensor, noise: Tensor) -> Tensor:
        with torch.no_grad():
            target = z - written_out()(z, model, t, noise)
        value = F.mse_loss(z, target, reduction="mean" if reduction == "mean" else "sum")
        return value * (0.5 if halved else 1.0) / (len(z) if reduction == "sum/B" else 1)

    return gradient_of_loss(loss)


@pytest.mark.parametrize(
    ("gradient", "factor"),
    [
        (loss_of("sum", halved=True), ""),
        (loss_of("sum", halved=False), "2 · "),
        (loss_of("sum/B", halved=True), "1/(B) · "),
        (loss_of("mean", halved=False), "2 · 1/(B N) · "),
        (loss_of("mean", halved=True), "1/(B N) · "),
        (written_out(factor=lambda _: 0.5), "½ · "),
        (written_out(factor=lambda z: 1 / len(z)), "1/(B) · "),
        (written_out(factor=lambda _: 0.3), "0.3 · "),
    ],
    ids=["½ sum", "sum", "½ sum/B", "mean", "½ mean", "½", "1/B", "0.3"],
)
def test_halves_sums_and_means_are_told_apart(gradient, factor):
    found = conformance(gradient)
    assert found.is_sds, found
    assert found.factor == factor


def test_a_unet_of_diffusers_and_the_other_guidance_convention():
    def gradient(z, model, t, noise):
        _, signal, sigma = rates(t)
        x_t = signal * z + sigma * noise
        hidden = model.embeddings.repeat_interleave(len(z), 0)
        both = model.unet(torch.cat([x_t] * 2), t[0], encoder_hidden_states=hidden).sample
        unconditional, conditional = both.chunk(2)
        eps = conditional + S * (conditional - unconditional)
        return (1 - rates(t)[0]) * (eps - noise)

    found = conformance(gradient, guidance=S)
    assert found.is_sds
    assert found.guidance == pytest.approx(S + 1, rel=1e-4)
    assert "it writes ε_c + s (ε_c - ε_u)" in str(found)


def in_half(z: Tensor, model: ProbeModel, t: Tensor, noise: Tensor) -> Tensor:
    half = written_out(s=100.0, weight=lambda a: ((1 - a) / a).sqrt())(z, model, t, noise)
    return (half * 64).half().float() * 64  # loss scaling, as mixed precision has it


WRONG = {
    "sign": (written_out(factor=lambda _: -1.0), "the sign is reversed"),
    "weight twice": (written_out(weight=lambda a: (1 - a) ** 2), "weight (1-ᾱ) is applied twice"),
    "unknown weight": (written_out(weight=lambda a: a**3), "w(t) is none that is known"),
    "batch twice": (written_out(factor=lambda z: 1 / len(z) ** 2), "by the batch 2 times"),
    "guidance off by two": (written_out(s=S + 2), "guidance scale comes out as 9.5, where 7.5"),
    "halves swapped": (written_out(swapped=True), "guidance scale comes out as -6.5"),
    "asked at the next t": (written_out(asked_at=1), "the model is asked at t+1, not at t"),
    "noised at the next t": (written_out(noised_at=1), "x_t is made with ᾱ of t+1, not of t"),
    "noised at t - 1": (written_out(noised_at=-1), "x_t is made with ᾱ of t-1, not of t"),
    "clamped": (written_out(clamp=1.0), "x̂_0 or the gradient is clamped"),
    "redrawn": (written_out(redrawn=True), "x_t is not made with the noise that is given"),
    "noise left in": (written_out(subtracted=0.0), "the noise is not subtracted"),
    "half of the noise": (written_out(subtracted=0.5), "their shares do not add to 0"),
    "z left in": (written_out(of_z=0.3), "the gradient depends on z itself"),
    "float16": (in_half, "not finite at t ="),
    "no model": (lambda z, *_: z, "the model is not called"),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_is_named(name):
    gradient, message = WRONG[name]
    found = conformance(gradient, guidance=S if name != "float16" else 100.0)
    assert not found.is_sds
    assert message in str(found), found
    assert "This is not SDS" in str(found)


def test_a_right_one_has_no_finding():
    assert not conformance(written_out(), guidance=S).findings


def test_a_gradient_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"must be like z, \[2, 4, 8, 8\], got \[2\]"):
        conformance(lambda z, *_: z.sum((1, 2, 3)))


def test_a_picture_of_another_size_is_refused():
    def gradient(z, model, t, noise):
        return model(F.avg_pool2d(z, 2), t, True) + noise

    with pytest.raises(ValueError, match="x_t must be like z"):
        conformance(gradient)


def test_the_plugin_s_fixture_fails_with_the_report(pytester):
    pytester.makeconftest("from sdslab.pytest_plugin import assert_is_sds")
    pytester.makepyfile(
        """
        def right(z, model, t, noise):
            from sdslab.denoisers.noise_schedule import NoiseSchedule
            a = NoiseSchedule.stable_diffusion().alpha_bars[t].float().view(-1, 1, 1, 1)
            x_t = a.sqrt() * z + (1 - a).sqrt() * noise
            return model(x_t, t, True) - noise

        def test_right(assert_is_sds):
            assert_is_sds(right)

        def test_wrong(assert_is_sds):
            assert_is_sds(lambda *arguments: -right(*arguments))
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*This is not SDS (Eq. 1)*", "*the sign is reversed*"])
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"sdslab": pytest_plugin.__name__}


def test_the_documentation_s_example_says_what_it_prints(capsys):
    text = (Path(__file__).parents[1] / "docs" / "objectives.md").read_text(encoding="utf-8")
    after = text[text.index("## Is my SDS right?") :]
    code, printed = (block.partition("\n")[2] for block in after.split("```")[1:4:2])
    exec(code, {"alphas_cumprod": SCHEDULE.alpha_bars.float()})
    assert capsys.readouterr().out == printed
