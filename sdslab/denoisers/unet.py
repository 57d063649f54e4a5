"""Diffusers' UNets as guidance: DeepFloyd IF I and II, Stable Diffusion, SDXL and the ×4 upscaler.

They differ in a few lines: what is laid beside x_t, and which conditions are passed on.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch

from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction
from sdslab.denoisers.noise_schedule import NoiseSchedule
from sdslab.denoisers.pipelines import PipelineSource
from sdslab.denoisers.prompts import Prompts
from sdslab.diffusion_space import DiffusionSpace, LatentSpace, PixelSpace, load_whole
from sdslab.errors import UserError, first_line
from sdslab.files.weights import require_safetensors
from sdslab.kernels import PredictionType
from sdslab.tensor_types import Diffused, Timesteps

Kind = Literal["IF-I", "IF-II", "Stable Diffusion", "SDXL", "×4 upscaler"]
KINDS: dict[str, Kind] = {
    "IFPipeline": "IF-I",
    "IFSuperResolutionPipeline": "IF-II",
    "StableDiffusionPipeline": "Stable Diffusion",
    "StableDiffusionXLPipeline": "SDXL",
    "StableDiffusionUpscalePipeline": "×4 upscaler",
}
STAGE_OF: dict[Kind, Literal[1, 2]] = {
    "IF-I": 1,
    "IF-II": 2,
    "Stable Diffusion": 1,
    "SDXL": 1,
    "×4 upscaler": 2,
}
PIXEL_KINDS = ("IF-I", "IF-II")
PREDICTIONS: dict[str, PredictionType] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
# A batch of guided pictures needs about as much again as the weights, on the models that we know.
HEADROOM = 1.6


@dataclass(frozen=True, eq=False)
class GuidanceModel:
    """A diffusion model, loaded, and what its pictures are like.

    Attributes:
        kind: kind of pipeline.
        unet: frozen, in evaluation mode.
        schedule: schedule of x_t.
        condition_schedule: that of a super-resolution condition's noise; else ``schedule``.
        prediction_type: what the UNet says.
        space: diffusion space of x_0.
        size: side of the pictures that it was trained on.
        low_size: side of the low-resolution picture, in stage II.
        thresholds: quantile and largest bound of the sampler's dynamic thresholding.
        device: where it runs.
        offload: whether the UNet is on the GPU only while it runs.
    """

    kind: Kind
    unet: Any
    schedule: NoiseSchedule
    condition_schedule: NoiseSchedule
    prediction_type: PredictionType
    space: DiffusionSpace
    size: int
    low_size: int
    thresholds: tuple[float, float]
    device: torch.device
    offload: bool = False

    def denoiser(self, prompts: Prompts) -> "UNetDenoiser":
        """The model, told some prompts.

        Raises:
            UserError: the embeddings are another model's.
        """
        return UNetDenoiser(self, prompts)


@final
class OffloadedWeights:
    """A frozen module's weights: on the CPU for good, and copied to a device while a block runs.

    Nothing is copied back, for they do not change. For a GPU they lie in page-locked memory, from
    which copies run at the bus's own speed.

    Args:
        module: on the CPU.
        device: where it computes.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        self._device, self._blocks = device, 0
        self._kept = []
        for tensor in (*module.parameters(), *module.buffers()):
            if device.type == "cuda" and not tensor.is_pinned():
                tensor.data = tensor.data.pin_memory()
            self._kept.append((tensor, tensor.data))

    @contextmanager
    def uploaded(self) -> Iterator[None]:
        """A block in which the module is on the device; one within another copies nothing."""
        if self._blocks == 0:
            for tensor, kept in self._kept:
                tensor.data = kept.to(self._device, non_blocking=True, copy=True)
        self._blocks += 1
        try:
            yield
        finally:
            self._blocks -= 1
            if self._blocks == 0:
                for tensor, kept in self._kept:
                    tensor.data = kept


@final
class UNetDenoiser(Denoiser):
    """Predicts as the pipeline would, without guidance: wrap it in `ClassifierFreeGuidance`.

    Args:
        model: the UNet and its kind.
        prompts: what `Condition.prompt` counts.
    """

    def __init__(self, model: GuidanceModel, prompts: Prompts) -> None:
        self.model, self.schedule = model, model.schedule
        self._weights = OffloadedWeights(model.unet, model.device) if model.offload else None
        self.prompts = prompts.to(model.device, _dtype_of(model.unet))
        config = model.unet.config
        # DeepFloyd projects T5's states first; the others attend to CLIP's as they are.
        expected = config.get("encoder_hid_dim") or config["cross_attention_dim"]
        if prompts.embeddings.shape[-1] != expected:
            raise UserError(
                f"prompt embeddings must have {expected} channels for this {model.kind} model, got "
                f"{prompts.embeddings.shape[-1]}; encode them with its own text encoder"
            )
        if model.kind == "SDXL" and prompts.pooled is None:
            raise UserError("SDXL needs pooled prompt embeddings, got none in --embeddings")
        # SDXL: original size, no crop, target size: a whole picture at the model's own resolution.
        size = float(model.size)
        self._time_ids = torch.tensor([size, size, 0, 0, size, size]).to(self.prompts.embeddings)

    def loaded(self) -> AbstractContextManager[None]:
        return nullcontext() if self._weights is None else self._weights.uploaded()

    @torch.no_grad()
    def predict(
        self, x_t: Diffused, t: Timesteps, condition: Condition | None = None
    ) -> Prediction:
        if condition is None or condition.prompt is None:
            raise ValueError(f"a {self.model.kind} model needs a condition with a prompt, got none")
        unet = self.model.unet
        dtype = self.prompts.embeddings.dtype
        sample = x_t
        options: dict[str, Any] = {}
        if STAGE_OF[self.model.kind] == 2:
            if condition.low_resolution is None or condition.noise_level is None:
                raise ValueError(
                    f"a {self.model.kind} model needs low_resolution and noise_level, got none"
                )
            sample = torch.cat((x_t, condition.low_resolution.to(x_t)), dim=1)
            options["class_labels"] = condition.noise_level
        if self.model.kind == "SDXL":
            assert self.prompts.pooled is not None
            options["added_cond_kwargs"] = {
                "text_embeds": self.prompts.pooled[condition.prompt],
                "time_ids": self._time_ids.expand(len(x_t), 6),
            }
        with self.loaded():
            output = unet(
                sample.to(dtype),
                t,
                encoder_hidden_states=self.prompts.embeddings[condition.prompt],
                return_dict=False,
                **options,
            )[0]
        return Prediction(output, self.model.prediction_type)


def check_stage(source: PipelineSource, stage: Literal[1, 2]) -> Kind:
    """Kind of a pipeline, from its ``model_index.json`` alone.

    Raises:
        UserError: it cannot be had, is of an unknown kind, or serves the other stage.
    """
    name = source.index()["_class_name"]
    if name not in KINDS:
        raise UserError(
            f"{source.option} must be one of {', '.join(KINDS)}, got {source.name!r}, a {name}"
        )
    kind = KINDS[name]
    if STAGE_OF[kind] != stage:
        other = "--sr-model" if stage == 1 else "--model"
        raise UserError(
            f"{source.option} must be a model for stage {stage}, got {source.name!r}, a {name} "
            f"({kind}), which serves stage {STAGE_OF[kind]}; give it to {other}"
        )
    return kind


def load_guidance(
    source: PipelineSource,
    stage: Literal[1, 2],
    device: torch.device,
    dtype: torch.dtype,
    *,
    offload: bool = False,
    compile: bool = False,
) -> GuidanceModel:
    """Loads a pipeline's UNet, scheduler and VAE; never its text encoder or safety checker.

    Args:
        source: a local folder or a hub id.
        stage: the stage that it is to serve.
        device: where it runs.
        dtype: precision of its weights.
        offload: keep the UNet's weights on the CPU, and copy them to the device at each step.
        compile: compile the UNet at its first call.

    Raises:
        UserError: it cannot be had, serves the other stage, or does not fit the GPU's memory.
    """
    kind = check_stage(source, stage)
    parts = ["unet", "scheduler", *([] if kind in PIXEL_KINDS else ["vae"])]
    noising = {"IF-II": "image_noising_scheduler", "×4 upscaler": "low_res_scheduler"}.get(kind)
    folder = source.folder([*parts, *([noising] if noising else [])], dtype != torch.float32)
    _require_memory(source, folder, parts, device, dtype, offload)
    unet = _load_unet(source, folder, dtype)
    unet = unet.to(memory_format=torch.channels_last).to("cpu" if offload else device)
    unet = unet.eval().requires_grad_(False)
    schedule = NoiseSchedule.from_scheduler_config(folder / "scheduler")
    prediction = _prediction_type(folder)
    sample_size = int(unet.config["sample_size"])
    if kind in PIXEL_KINDS:
        space: DiffusionSpace = PixelSpace(sample_size)
        size, low_size = sample_size, max(1, sample_size // 4)
    else:
        latent = LatentSpace.load(folder, device, dtype)
        size, low_size = sample_size * latent.factor, sample_size
        latent.size = size
        space = latent
    return GuidanceModel(
        kind,
        torch.compile(unet) if compile else unet,
        schedule,
        NoiseSchedule.from_scheduler_config(folder / noising) if noising else schedule,
        prediction,
        space,
        size,
        low_size,
        _thresholds(folder),
        device,
        offload,
    )


def _load_unet(source: PipelineSource, folder: Path, dtype: torch.dtype) -> Any:
    from diffusers import UNet2DConditionModel

    weights = folder / "unet"
    require_safetensors(f"{source.option} {source.name}", weights)
    whole = any(file for file in weights.glob("*.safetensors") if ".fp16." not in file.name)
    variant = (
        "fp16"
        if not whole or (dtype != torch.float32 and any(weights.glob("*.fp16.safetensors")))
        else None
    )
    try:
        return load_whole(
            UNet2DConditionModel, weights, dtype, local_files_only=True, variant=variant
        )
    except Exception as error:  # diffusers and safetensors raise a dozen types for a broken folder
        raise UserError(
            f"{source.option} {source.name}: the UNet cannot be loaded: {first_line(error)}; "
            f"download or save it again"
        ) from error


def _scheduler_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))


def _thresholds(folder: Path) -> tuple[float, float]:
    """Quantile and largest bound of x̂_0; DeepFloyd's where the scheduler names none."""
    config = _scheduler_config(folder)
    if not config.get("thresholding"):
        return 0.95, 1.5
    return config.get("dynamic_thresholding_ratio", 0.995), config.get("sample_max_value", 1.0)


def _prediction_type(folder: Path) -> PredictionType:
    name = _scheduler_config(folder).get("prediction_type", "epsilon")
    if name not in PREDICTIONS:
        raise UserError(
            f"the scheduler's prediction_type must be one of {', '.join(PREDICTIONS)}, got {name!r}"
        )
    return PREDICTIONS[name]


def _require_memory(
    source: PipelineSource,
    folder: Path,
    parts: list[str],
    device: torch.device,
    dtype: torch.dtype,
    offload: bool,
) -> None:
    """Refuses a model that cannot fit, before minutes of loading."""
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    stored = sum(
        max((file.stat().st_size for file in (folder / part).glob("*.safetensors")), default=0)
        for part in parts
    )
    half_on_disk = any((folder / "unet").glob("*.fp16.safetensors"))
    per_stored = (4 if dtype == torch.float32 else 2) / (2 if half_on_disk else 4)
    needed = int(stored * per_stored * (0.6 if offload else HEADROOM))
    if needed > free:
        gib = 2**30
        raise UserError(
            f"{source.option} {source.name} needs about {needed / gib:.1f} GiB of the GPU's "
            f"memory, got {free / gib:.1f} GiB free; give --dtype float16, --low-memory, --offload "
            f"or fewer --views, or a smaller model (--preset fast)"
        )


def _dtype_of(unet: Any) -> torch.dtype:
    return next(unet.parameters()).dtype
