"""Diffusers' pipelines: those known to work, with their settings, and where each comes from."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdslab.denoisers.noise_schedule import SqrtAnnealedTimesteps, TimestepSampler, UniformTimesteps
from sdslab.errors import UserError
from sdslab.files.disk_cache import content_hash
from sdslab.files.weights import ask_hub, not_available, require_hub_id
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
    objective: str = "sds"
    """Stage I's, a name of `sdslab.distillation.objectives.OBJECTIVES`, or MODULE:NAME."""
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


@dataclass(frozen=True)
class PipelineSource:
    """A pipeline by its name.

    Attributes:
        name: a local folder in diffusers' format, or a hub id such as DeepFloyd/IF-I-XL-v1.0.
        option: command-line option that gave the name, for messages.
        revision: a branch, tag or commit on the hub.
    """

    name: str
    option: str = "--model"
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the name is a local folder."""
        return Path(self.name).expanduser().is_dir()

    def folder(self, parts: Sequence[str] = (), half: bool = False) -> Path:
        """A local folder that holds ``model_index.json`` and the named parts; may download them.

        Args:
            parts: subfolders, such as "unet".
            half: take weights in half precision where there are any.

        Raises:
            UserError: no such folder or model, gated, no network, or weights that are pickles only.
        """
        if self.is_local:
            folder = Path(self.name).expanduser()
        else:
            require_hub_id(self.option, self.name, "DeepFloyd/IF-I-XL-v1.0")
            folder = self._download(parts, half)
        if not (folder / "model_index.json").is_file():
            raise UserError(
                f"{self.option} must be a pipeline's folder with a model_index.json, got "
                f"{self.name!r}, which has none; save the pipeline there with save_pretrained"
            )
        for part in parts:
            if not (folder / part).is_dir():
                raise UserError(
                    f"{self.option} {self.name} must have a {part} folder, got none; download the "
                    f"whole pipeline"
                )
        return folder

    def index(self) -> dict[str, Any]:
        """The pipeline's own ``model_index.json``."""
        path = self.folder() / "model_index.json"
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(index.get("_class_name"), str):
                raise ValueError("it has no _class_name")
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.option} {self.name} must have a readable model_index.json, got {error}; "
                f"download or save the pipeline again"
            ) from error
        return index

    def digest(self, parts: Sequence[str]) -> str:
        """Changes whenever the parts do: commit on the hub, sizes and times of files here."""
        folder = self.folder()
        if not self.is_local:
            return content_hash(self.name, folder.name)  # the snapshot's commit
        files = [
            [str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns]
            for part in parts
            for path in sorted((folder / part).rglob("*"))
            if path.is_file()
        ]
        return content_hash(str(folder.resolve()), files)

    def _download(self, parts: Sequence[str], half: bool) -> Path:
        from huggingface_hub import snapshot_download

        answer = ask_hub(self.name, self.revision)
        patterns = ["model_index.json"]
        for part in parts:
            unknown = isinstance(answer, Exception)
            patterns += [f"{part}/*"] if unknown else self._files_of(part, answer, half)
        try:
            return Path(
                snapshot_download(
                    self.name,
                    revision=self.revision,
                    allow_patterns=patterns,
                    local_files_only=isinstance(answer, Exception),
                )
            )
        except Exception as error:
            raise not_available(
                self.option,
                self.name,
                answer if isinstance(answer, Exception) else error,
                "; without weights, --exemplar PHOTO textures a mesh like a photo",
            ) from error

    def _files_of(self, part: str, files: Sequence[str], half: bool) -> list[str]:
        own = [file for file in files if file.startswith(f"{part}/")]
        weights = [file for file in own if file.endswith(".safetensors")]
        if not weights and any(file.endswith((".bin", ".ckpt", ".pt")) for file in own):
            raise UserError(
                f"{self.option} {self.name} must have safetensors weights (pickles are never "
                f"read), got pickles only in {part}; convert them with save_pretrained"
            )
        halves = [file for file in weights if ".fp16." in file]
        chosen = halves if half and halves else [file for file in weights if file not in halves]
        small = [
            file
            for file in own
            if file.endswith((".json", ".txt", ".model")) and file not in weights
        ]
        return [*small, *(chosen or weights)]
