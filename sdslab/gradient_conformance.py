"""Is a score-distillation gradient right? Probes anyone's function and says what it computes.

The model that the function is given is a probe: its predictions for the two prompts are known
random tensors, so that the gradient's share of each, of the noise and of z can be solved for. SDS
is w(t) (ε_u + s (ε_c − ε_u) − ε) in ε-form, whatever form and convention it was written in.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, final

import torch
from torch import Tensor

from sdslab.denoisers.noise_schedule import NoiseSchedule

# From (z, model, t [b], noise like z) to the gradient like z.
GradientFunction = Callable[[Tensor, "ProbeModel", Tensor, Tensor], Tensor]

# w_ε(ᾱ), the weight of ε̂ − ε, and who has it. An x0-form w is w_ε √(ᾱ/(1-ᾱ)).
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "1-ᾱ (DreamFusion; CasTex's √(ᾱ(1-ᾱ)) in x0-form)": lambda a: 1 - a,
    "1 (in ε-form)": torch.ones_like,
    "√((1-ᾱ)/ᾱ) (1 in x0-form: CasTex Eq. 4)": lambda a: ((1 - a) / a).sqrt(),
    "√ᾱ (1-ᾱ) (threestudio's fantasia3d)": lambda a: a.sqrt() * (1 - a),
    "√(1-ᾱ)": lambda a: (1 - a).sqrt(),
    "√(ᾱ(1-ᾱ)) (CasTex's, but in ε-form)": lambda a: (a * (1 - a)).sqrt(),
    "(1-ᾱ)/√ᾱ": lambda a: (1 - a) / a.sqrt(),
    "(1-ᾱ)² (the weight is applied twice)": lambda a: (1 - a).square(),
    "ᾱ": lambda a: a,
}
SCALES = {1.0: "", 2.0: "2 · ", 0.5: "½ · "}
TIMESTEPS = (40, 200, 450, 700, 930)
NEAR = 0.01  # of the predictions to the noise, where clamps are looked for


@final
@dataclass(eq=False)
class ProbeModel:
    """A model of ε̂ under two prompts, whose predictions are known and do not depend on x_t.

    It is called as ``model(x_t, t, conditional)`` with x_t [n, …], t [n] or one number, and
    ``conditional`` a truth value, or n of them: both halves may come in one batch. As
    ``model.unet(x_t, t, encoder_hidden_states=…).sample`` it is called like a UNet of diffusers,
    with rows of ``model.embeddings``, [2, 1, 4]: the empty prompt's, then the prompt's.

    Attributes:
        unconditional: its ε̂ without the prompt, [b, …].
        conditional: with it, [b, …].
        calls: x_t, t and which prompts, of each call.
    """

    unconditional: Tensor
    conditional: Tensor
    calls: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    @property
    def embeddings(self) -> Tensor:
        """[2, 1, 4]: the empty prompt's, then the prompt's."""
        return torch.stack((torch.zeros(1, 4), torch.ones(1, 4))).to(self.conditional)

    def __call__(self, x_t: Tensor, t: Tensor | int, conditional: Tensor | bool) -> Tensor:
        """ε̂ [n, …] of x_t's dtype."""
        n, b = len(x_t), len(self.conditional)
        if x_t.shape[1:] != self.conditional.shape[1:] or n % b:
            raise ValueError(
                f"x_t must be like z, {list(self.conditional.shape)}, or several of it stacked, "
                f"got {list(x_t.shape)}"
            )
        which = torch.as_tensor(conditional, dtype=torch.bool, device=x_t.device).expand(n)
        t = torch.as_tensor(t, device=x_t.device)
        self.calls.append((x_t.detach().double(), t.detach().expand(n), which))
        row = torch.arange(n, device=x_t.device) % b
        chosen = which.view(-1, *[1] * (x_t.ndim - 1))
        return torch.where(chosen, self.conditional[row], self.unconditional[row]).to(x_t.dtype)

    def unet(
        self, x_t: Tensor, t: Tensor | int, encoder_hidden_states: Tensor, **_: Any
    ) -> SimpleNamespace:
        """The same as diffusers' UNets are called; the result is its ``.sample``."""
        return SimpleNamespace(sample=self(x_t, t, encoder_hidden_states.flatten(1)[:, 0] > 0.5))


@final
@dataclass(frozen=True)
class Conformance:
    """What a gradient function computes.

    Attributes:
        is_sds: it is Eq. 1 with noise and t as given, up to a positive factor of neither.
        factor: "½ · ", "/ B", "/ (B N)", …: N is the number of elements of a sample.
        weighting: w_ε(t), the weight of ε̂ − ε.
        guidance: s of ε_u + s (ε_c − ε_u); None where no prediction is used.
        convention: how the scale that was said (``guidance`` of `conformance`) was meant.
        findings: what deviates, one sentence each.
    """

    is_sds: bool
    factor: str
    weighting: str
    guidance: float | None
    convention: str
    findings: tuple[str, ...]

    def __str__(self) -> str:
        head = "This is SDS (Eq. 1)" if self.is_sds else "This is not SDS (Eq. 1)"
        lines = [f"{head}: gradient = {self.factor}w(t) (ε_u + s (ε_c - ε_u) - ε)"]
        lines.append(f"  w(t): {self.weighting}")
        if self.guidance is not None:
            lines.append(f"  s = {self.guidance:.4g}{self.convention}")
        return "\n".join([*lines, *(f"  - {finding}" for finding in self.findings)])


@dataclass(frozen=True)
class _Probe:
    """One call: what the function made of z, both predictions and the noise."""

    alpha_bar: Tensor
    of: dict[str, float]
    misfit: float
    findings: tuple[str, ...]
    nonfinite: bool = False


def conformance(
    gradient: GradientFunction,
    schedule: NoiseSchedule | None = None,
    *,
    guidance: float | None = None,
    channels: int = 4,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Conformance:
    """Says what ``gradient`` computes.

    Args:
        gradient: of (z [b, c, h, w], model, t [b] int64, noise like z); it calls the model, a
            `ProbeModel`. `gradient_of_loss` makes one of a loss.
        schedule: ᾱ that it noises with; Stable Diffusion's where None.
        guidance: the scale that it was told, to say in which convention it takes it.
        channels: c; 3 for pixels.
        dtype: of z and of the noise.
        seed: of the probes.
    """
    schedule = schedule or NoiseSchedule.stable_diffusion()
    tolerance = 1e-8 if dtype == torch.float64 else 2e-3 if dtype == torch.float32 else 0.05

    def probe(batch: int, side: int, t: int, spread: float = 1.0) -> _Probe:
        shape = (batch, channels, side, side)
        return _probe(gradient, schedule, shape, t, dtype, seed, tolerance, spread)

    probes = [probe(2, 8, t) for t in TIMESTEPS]
    findings = list(dict.fromkeys(text for each in probes for text in each.findings))
    bad = [t for t, each in zip(TIMESTEPS, probes, strict=True) if each.nonfinite]
    if bad:
        findings.append(f"the gradient is not finite at t = {', '.join(map(str, bad))}: float16?")
    spread, linear = (
        1.0,
        [each for each in probes if not each.nonfinite and each.misfit < tolerance],
    )
    if len(linear) < len(probes) - len(bad):
        # Predictions near the noise, and so an x̂_0 near z, may be within the bounds of a clamp.
        spread, near = NEAR, [probe(2, 8, t, NEAR) for t in TIMESTEPS]
        linear = [each for each in near if not each.nonfinite and each.misfit < tolerance]
        what = "the gradient is no combination of ε_u, ε_c, the noise and z"
        if len(linear) < 2:
            return Conformance(False, "", "unknown", None, "", (*findings, what))
        findings.append(f"{what} unless ε̂ is near ε: x̂_0 or the gradient is clamped")
    weights = torch.tensor([-each.of["noise"] for each in linear], dtype=torch.float64)
    alpha_bars = torch.stack([each.alpha_bar for each in linear])
    predicted = torch.tensor([each.of["u"] + each.of["c"] for each in linear])
    size = predicted.abs().max().clamp_min(1e-12)
    if weights.abs().max() < tolerance * max(abs(each.of["c"]) for each in linear):
        findings.append("the noise is not subtracted: s (ε_c - ε_u) alone is CSD's residual")
        weights = torch.tensor([each.of["c"] for each in linear], dtype=torch.float64)
    elif (predicted - weights).abs().max() > 20 * tolerance * size:
        findings.append("ε̂ and the noise do not have the same weight: their shares do not add to 0")
    if any(abs(each.of["z"]) > 20 * tolerance * size for each in linear):
        findings.append("the gradient depends on z itself beside ε̂ - ε")
    if weights.max() < 0:
        findings.append("the sign is reversed: descending it leads away")
        weights = -weights
    name, factor = _weight_of(weights, alpha_bars, tolerance)
    if "twice" in name:
        findings.append("the weight (1-ᾱ) is applied twice")
    if name == "unknown":
        findings.append("w(t) is none that is known")
    scale = sum(each.of["c"] / (each.of["u"] + each.of["c"]) for each in linear if
                abs(each.of["u"] + each.of["c"]) > 1e-12) / len(linear)  # fmt: skip
    convention = _convention(scale, guidance, findings)
    words = _factor_words(factor, probe, channels, spread, findings) if name != "unknown" else ""
    return Conformance(not findings, words, name, scale, convention, tuple(findings))


def gradient_of_loss(loss: Callable[[Tensor, ProbeModel, Tensor, Tensor], Tensor]) -> Any:
    """The gradient function of a loss: its derivative by z, as ``loss.backward()`` would give."""

    def gradient(z: Tensor, model: ProbeModel, t: Tensor, noise: Tensor) -> Tensor:
        z = z.detach().clone().requires_grad_()
        (result,) = torch.autograd.grad(loss(z, model, t, noise), z)
        return result

    return gradient


def _probe(
    gradient: GradientFunction,
    schedule: NoiseSchedule,
    shape: tuple[int, ...],
    t: int,
    dtype: torch.dtype,
    seed: int,
    tolerance: float,
    spread: float,
) -> _Probe:
    generator = torch.Generator().manual_seed(seed + t)
    z = (torch.rand(shape, generator=generator) - 0.5).to(dtype)
    u, c, noise = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    if spread < 1:
        u, c = noise + spread * u, noise + spread * c
    model, times = ProbeModel(u, c), torch.full((shape[0],), t)
    made = gradient(z, model, times, noise).detach().double()
    if made.shape != z.shape:
        raise ValueError(
            f"the gradient must be like z, {list(z.shape)}, got {list(made.shape)}; return the "
            "gradient of z, before any parameters"
        )
    alpha_bar = schedule.alpha_bars[t]
    if not model.calls:
        return _Probe(alpha_bar, {}, math.inf, ("the model is not called",))
    findings = []
    x_t, asked, _ = model.calls[0]
    x_t, asked = x_t[: shape[0]], int(asked[0])
    if asked != t:
        findings.append(f"the model is asked at t{asked - t:+d}, not at t")
    rates, misfit = _solve(x_t, {"z": z, "noise": noise})
    used = noise.double()
    if misfit > tolerance:
        findings.append("x_t is not made with the noise that is given: it is drawn anew")
        used = (x_t - alpha_bar.sqrt() * z.double()) / (1 - alpha_bar).sqrt()
    elif abs(rates["z"] - alpha_bar.sqrt()) > tolerance / 100:
        nearest = int((schedule.alpha_bars.sqrt() - rates["z"]).abs().argmin())
        findings.append(
            f"x_t is made with ᾱ of t{nearest - t:+d}, not of t"
            if abs(nearest - t) <= 2
            else f"x_t holds {rates['z']:.3g} z, where √ᾱ is {float(alpha_bar.sqrt()):.3g}"
        )
    if not made.isfinite().all():
        return _Probe(alpha_bar, {}, math.inf, tuple(findings), nonfinite=True)
    of, misfit = _solve(made, {"u": u, "c": c, "noise": used, "z": z})
    again, misfit_again = _solve(made, {"u": u, "c": c, "noise": noise, "z": z})
    if misfit > tolerance and misfit_again <= tolerance:  # x_t's own noise is another
        findings.append("the residual's noise is not x_t's")
        of, misfit = again, misfit_again
    return _Probe(alpha_bar, of, misfit, tuple(findings))


def _solve(target: Tensor, basis: dict[str, Tensor]) -> tuple[dict[str, float], float]:
    """Coefficients of the least squares fit, and what it leaves, relative to the target."""
    matrix = torch.stack([part.double().flatten() for part in basis.values()], 1)
    solution = torch.linalg.lstsq(matrix, target.flatten()[:, None]).solution
    rest = target.flatten() - (matrix @ solution)[:, 0]
    misfit = float(rest.norm() / target.norm().clamp_min(1e-30))
    return dict(zip(basis, solution[:, 0].tolist(), strict=True)), misfit


def _weight_of(weights: Tensor, alpha_bars: Tensor, tolerance: float) -> tuple[str, float]:
    """The name of the weight that the numbers are proportional to, and the factor."""
    for name, function in WEIGHTS.items():
        ratio = weights / function(alpha_bars)
        if (ratio / ratio.mean() - 1).abs().max() < 5 * tolerance:
            return name, float(ratio.mean())
    return "unknown", math.nan


def _convention(scale: float, said: float | None, findings: list[str]) -> str:
    if said is None:
        return ""
    for offset, words in ((0, "as said"), (1, "said as s - 1: it writes ε_c + s (ε_c - ε_u)")):
        if abs(scale - said - offset) < 0.01 * max(1.0, abs(said)) * (0.1 if offset else 1):
            return f", {words}"
    findings.append(f"the guidance scale comes out as {scale:.4g}, where {said:g} was said")
    return ""


def _factor_words(
    factor: float,
    probe: Callable[[int, int, int, float], _Probe],
    channels: int,
    spread: float,
    findings: list[str],
) -> str:
    """The factor as ½, 2, / B and / N, from other batches and sizes."""
    shapes, t = ((2, 8), (4, 8), (2, 16)), TIMESTEPS[2]
    here, batches, sizes = (abs(probe(*shape, t, spread).of["c"]) for shape in shapes)
    of_batch, of_size = round(math.log2(here / batches)), round(math.log2(here / sizes) / 2)
    if of_batch > 1:
        findings.append(f"it is divided by the batch {of_batch} times")
    rest = abs(factor) * 2**of_batch
    if of_size:
        rest *= (8 * 8 * channels) ** of_size
    nearest = min(SCALES, key=lambda known: abs(math.log(rest / known)))
    words = SCALES[nearest] if abs(rest / nearest - 1) < 0.02 else f"{rest:.4g} · "
    under = " ".join(["B"] * of_batch + ["N"] * of_size)
    return words + (f"1/({under}) · " if under else "")
