"""Diffusion models that are known to work, and the settings that go with them, as data."""

from dataclasses import dataclass
from typing import Literal

from sdslab.denoisers.noise_schedule import SqrtAnnealedTimesteps, TimestepSampler, UniformTimesteps
from sdslab.kernels import SRMode

X0Bound = Literal["clamp", "dynamic", "none"]


@dataclass(frozen=True)
class KnownModel:
    """A pipeline on the hub."""

    id: str
    stage: Literal[1, 2]
    parameters: str
    """Number of the UNet's parameters."""
    download_gb: float
    """UNet in half precision, with the VAE where there is one; without the text encoder."""


KNOWN_MODELS = (
    KnownModel("DeepFloyd/IF-I-M-v1.0", 1, "0.4 B", 0.8),
    KnownModel("DeepFloyd/IF-I-L-v1.0", 1, "0.9 B", 1.9),
    KnownModel("DeepFloyd/IF-I-XL-v1.0", 1, "4.3 B", 8.6),
    KnownModel("DeepFloyd/IF-II-M-v1.0", 2, "0.4 B", 0.9),
    KnownModel("DeepFloyd/IF-II-L-v1.0", 2, "1.2 B", 2.5),
    KnownModel("stable-diffusion-v1-5/stable-diffusion-v1-5", 1, "0.9 B", 1.9),
    KnownModel("stabilityai/stable-diffusion-xl-base-1.0", 1, "2.6 B", 5.3),
    KnownModel("stabilityai/stable-diffusion-x4-upscaler", 2, "0.5 B", 1.0),
)


@dataclass(frozen=True)
class StageSettings:
    """Default settings of a stage."""

    model: str | None
    """A hub id; None leaves the stage out."""
    steps: int
    guidance_scale: float
    timesteps: TimestepSampler
    shared_timestep: bool
    """One t a step instead of one a picture."""
    learning_rate: float = 0.01
    learning_rate_schedule: Literal["constant", "cosine", "step"] = "step"
    views: int = 8
    weighting: str = "x0_castex"
    x0_bound: X0Bound = "clamp"
    """Bound of x̂_0 to [−1, 1]: CasTex's clamp, DeepFloyd's thresholding, or none."""
    gradient_clamp: float | None = None
    """Bound of each element of the gradient."""
    sr_mode: SRMode = "castex"
    """Resampling of stage I's render to the condition of stage II."""


@dataclass(frozen=True)
class Preset:
    """Two stages."""

    stage_one: StageSettings
    stage_two: StageSettings


_ANNEALED = SqrtAnnealedTimesteps()
_CASTEX_ONE = StageSettings("DeepFloyd/IF-I-XL-v1.0", 500, 15.0, _ANNEALED, shared_timestep=True)
_CASTEX_TWO = StageSettings("DeepFloyd/IF-II-L-v1.0", 1000, 10.0, _ANNEALED, shared_timestep=True)
PRESETS = {
    # Stage I of the paper's smallest model: "CasTex IF-I-M, stage I only".
    "fast": Preset(
        StageSettings("DeepFloyd/IF-I-M-v1.0", 500, 15.0, _ANNEALED, shared_timestep=True),
        StageSettings(None, 1000, 10.0, _ANNEALED, shared_timestep=True),
    ),
    # The paper's numbers (its public code's, where the paper is silent); docs/castex.md lists what
    # differs all the same.
    "castex": Preset(_CASTEX_ONE, _CASTEX_TWO),
    # One t a picture lowers the gradient's variance, and the condition is what the super-resolution
    # model was trained on: antialiased, at its own pipeline's noise level.
    "quality": Preset(
        StageSettings("DeepFloyd/IF-I-XL-v1.0", 1000, 20.0, _ANNEALED, shared_timestep=False),
        StageSettings(
            "DeepFloyd/IF-II-L-v1.0", 1500, 10.0, _ANNEALED, shared_timestep=False,
            sr_mode="pipeline",
        ),
    ),
}  # fmt: skip
# Latent models have no clamp, and want larger t throughout: Paint-it's and DreamFusion's ranges.
STABLE_DIFFUSION_ONE = StageSettings(
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    1000,
    100.0,
    UniformTimesteps(20, 980),
    shared_timestep=False,
    weighting="epsilon_dreamfusion",
    x0_bound="none",
)
STABLE_DIFFUSION_TWO = StageSettings(
    "stabilityai/stable-diffusion-x4-upscaler",
    500,
    10.0,
    _ANNEALED,
    shared_timestep=False,
    weighting="epsilon_dreamfusion",
    x0_bound="none",
    sr_mode="pipeline",
)
STABLE_DIFFUSION = Preset(STABLE_DIFFUSION_ONE, STABLE_DIFFUSION_TWO)
