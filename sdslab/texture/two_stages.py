"""``--prompt``: CasTex's Figure 1. Stage I is SDS, stage II SR-SDS on renders of its result."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sdslab.denoisers.denoiser import Denoiser
from sdslab.denoisers.noise_schedule import weighting_named
from sdslab.denoisers.pipelines import PipelineSource, Preset, StageSettings
from sdslab.denoisers.prompts import (
    OTHER_SIDES,
    VIEW_NAMES,
    Prompts,
    encode_prompts,
    view_of,
    view_prompts,
)
from sdslab.denoisers.unet import PIXEL_KINDS, GuidanceModel, check_stage, load_guidance
from sdslab.denoisers.wrappers import (
    ClassifierFreeGuidance,
    DynamicThresholding,
    PerpendicularNegatives,
)
from sdslab.diffusion_guide import DiffusionGuide, Draw, SuperResolution
from sdslab.errors import UserError
from sdslab.optimization.material_optimization import MaterialConfig, MaterialProblem
from sdslab.optimization.optimizer_state import OptimizeConfig
from sdslab.parameterizations.parameterization import Parameterization
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.rendering.texels import fill_unseen
from sdslab.shell.progress_lines import ProgressLines
from sdslab.texture.arguments import Arguments
from sdslab.texture.objective import distil, needs_negative
from sdslab.texture.outputs import TextureResult
from sdslab.texture.resolved_arguments import model_dtype, resolved_settings, stage_record
from sdslab.texture.stage import Outcome, Stage, run_stage
from sdslab.texture.workspace import Workspace

RENDER_SIZE = 512
NAMES = {1: "stage1", 2: "stage2"}
# A normal map's values are (n + 1) / 2: with half the step, Adam moves n as far as the other maps.
SCALE = torch.tensor([1, 1, 1, 1, 1, 0.5, 0.5, 0.5])


def texture_from_prompt(workspace: Workspace, progress: ProgressLines) -> TextureResult:
    """Textures the mesh as a text says.

    Raises:
        UserError: a model cannot be had or does not fit, or the optimisation diverged.
    """
    _check_graph(workspace)
    arguments = workspace.arguments
    settings = resolved_settings(arguments)
    stages = _Stages(workspace, progress, settings, model_dtype(arguments, workspace.device))
    assert settings.stage_one.model is not None
    source = PipelineSource(settings.stage_one.model)
    sr_name = settings.stage_two.model
    sr_source = PipelineSource(sr_name, "--sr-model") if sr_name is not None else None
    # What is missing is said before anything is loaded or computed.
    # DeepFloyd's stages share T5's embeddings; any other pair has encoders of its own.
    shared = check_stage(source, 1) == "IF-I"
    if sr_source is not None:
        shared = check_stage(sr_source, 2) == "IF-II" and shared
    prompts = sr_prompts = stages.prompts(source, arguments.model.embeddings)
    if sr_source is not None and not shared:
        sr_prompts = stages.prompts(sr_source)
    initial = workspace.initial_maps()
    workspace.record["config"]["stages"] = {
        NAMES[number]: stage_record(stage)
        for number, stage in ((1, settings.stage_one), (2, settings.stage_two))
        if stage.model is not None
    }
    resumed = workspace.resumed
    if resumed is not None and resumed.state["stage"] == NAMES[2]:
        stage_one = resumed.tensors["stage_one"]
        workspace.begin()
    else:
        stage_one = stages.finish(1, source, prompts, initial)
        if stages.interrupt is not None or sr_source is None:
            return stages.textured({NAMES[1]: stage_one})
        workspace.checkpoints.save({"stage_one": stage_one}, {"stage": NAMES[2]})
    assert sr_source is not None
    if workspace.device.type == "cuda":
        torch.cuda.empty_cache()
    stage_two = stages.finish(2, sr_source, sr_prompts, stage_one)
    return stages.textured({NAMES[2]: stage_two, NAMES[1]: stage_one})


def _check_graph(workspace: Workspace) -> None:
    options = workspace.arguments.model
    if not options.graph:
        return
    if workspace.device.type != "cuda":
        raise UserError(f"--graph needs a CUDA device, got {workspace.device}; leave it out")
    if options.offload:
        raise UserError("--graph and --offload exclude each other: a graph's weights stay in place")


@dataclass(frozen=True, eq=False)
class _Stages:
    """The two stages of a run, one after the other.

    Attributes:
        workspace: of the run.
        progress: shows what takes time.
        settings: of both.
        dtype: of the models.
        outcomes: by a stage's name, of those that have ended.
    """

    workspace: Workspace
    progress: ProgressLines
    settings: Preset
    dtype: torch.dtype
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def interrupt(self) -> KeyboardInterrupt | None:
        """Ctrl-C or SIGTERM, where one ended a stage early."""
        interrupts = (outcome.interrupt for outcome in self.outcomes.values())
        return next((interrupt for interrupt in interrupts if interrupt is not None), None)

    def prompts(self, source: PipelineSource, embeddings: str | None = None) -> Prompts:
        """The prompt's embeddings for each side, of a file or by the pipeline's encoder."""
        options, subject = self.workspace.arguments.model, self.workspace.arguments.subject
        assert subject.prompt is not None
        texts = view_prompts(subject.prompt, options.view_names or VIEW_NAMES)
        negative = options.negative_prompt
        if needs_negative(self.settings.stage_one.objective):
            texts, negative = [*texts, negative], ""
        if embeddings is not None:
            return Prompts.load(Path(embeddings), len(texts) + 1)
        device = self.workspace.device
        with self.progress.busy("encoding the prompt"):
            return encode_prompts(source, texts, negative, device, self.dtype)

    def finish(
        self, number: Literal[1, 2], source: PipelineSource, prompts: Prompts, initial: Tensor
    ) -> Tensor:
        """Runs a stage to its end, or to Ctrl-C.

        Args:
            number: of the stage; the first takes the run's folder when its model is there.
            source: of its model, which is loaded here and gone in the end.
            prompts: for its model.
            initial: maps that it starts from, [size, size, 8].

        Returns:
            Its maps on the CPU; what no view saw takes the nearest's colours.
        """
        workspace, options = self.workspace, self.workspace.arguments.model
        device, one = workspace.device, number == 1
        theta = workspace.theta(initial, SCALE) if one else TexelGrid(initial, SCALE).to(device)
        with self.progress.busy(f"loading {source.name}"):
            model = load_guidance(
                source,
                number,
                device,
                self.dtype,
                offload=options.offload,
                compile=options.compile,
            )
        stage = self._stage(number, theta, model, prompts, initial)
        if one:
            workspace.begin()
        self.outcomes[stage.name] = run_stage(stage, workspace, self.progress)
        maps = stage.problem.maps().cpu().clone()
        return fill_unseen(maps, stage.problem.seen.texels().cpu(), workspace.mesh)

    def _stage(
        self,
        number: Literal[1, 2],
        theta: Parameterization,
        model: GuidanceModel,
        prompts: Prompts,
        initial: Tensor,
    ) -> Stage:
        workspace, arguments = self.workspace, self.workspace.arguments
        settings = self.settings.stage_one if number == 1 else self.settings.stage_two
        in_pixels = model.kind in PIXEL_KINDS
        unguided = model.denoiser(prompts)
        denoiser = _guided(unguided, prompts, settings, number, arguments)
        if in_pixels and settings.x0_bound == "dynamic":
            denoiser = DynamicThresholding(denoiser, *model.thresholds)
        clamp = 1.0 if in_pixels and settings.x0_bound == "clamp" else None
        seed, sr, distilled = workspace.seed(number), None, None
        if number == 1:
            low_memory = arguments.model.low_memory
            distilled = distil(settings, unguided, denoiser, prompts, clamp, low_memory=low_memory)
        else:
            schedule = model.condition_schedule if settings.sr_mode == "pipeline" else None
            frozen = initial.to(workspace.device)
            sr = SuperResolution(frozen, model.low_size, settings.sr_mode, schedule)
        guide = DiffusionGuide(
            denoiser,
            lambda cameras: view_of(cameras.eye),
            workspace.renderer,
            Draw(settings.timesteps, settings.steps, seed, settings.shared_timestep),
            weighting_named(settings.weighting),
            clamp,
            settings.gradient_clamp,
            sr,
            distilled,
        )
        render_size = arguments.rendering.render_size or max(RENDER_SIZE, model.size)
        workspace.record["config"]["stages"][NAMES[number]]["render_size"] = render_size
        optimization = OptimizeConfig(
            settings.steps,
            learning_rate=settings.learning_rate,
            learning_rate_schedule=settings.learning_rate_schedule,
        )
        problem = MaterialProblem(
            theta,
            workspace.renderer,
            workspace.scenes(render_size, number),
            model.space,
            guide,
            MaterialConfig(settings.views, optimization, arguments.optimization.held, initial),
            workspace.unseen(),
        )
        carried = {"stage_one": initial} if number == 2 else {}
        return Stage(NAMES[number], problem, carried, record=arguments.model.graph)

    def textured(self, materials: dict[str, Tensor]) -> TextureResult:
        """What the run comes to, with the stages' materials, the result first."""
        lines = []
        for name, outcome in self.outcomes.items():
            line = f"{name}: {outcome.steps} steps in {outcome.seconds:.1f} s"
            if outcome.skipped:
                line += f", {outcome.skipped} of them skipped: the model's output was not finite"
            lines.append(line)
        results = {
            name: {"steps": o.steps, "skipped": o.skipped, "seconds": round(o.seconds, 2)}
            for name, o in self.outcomes.items()
        }
        return TextureResult(materials, results, tuple(lines), self.interrupt)


def _guided(
    model: Denoiser, prompts: Prompts, settings: StageSettings, number: int, arguments: Arguments
) -> Denoiser:
    """With classifier-free guidance, or with the other sides' prompts as negatives in stage I."""
    low_memory, weight = arguments.model.low_memory, arguments.distillation.perp_neg
    row, scale = prompts.unconditional, settings.guidance_scale
    if weight and number == 1:
        others = torch.tensor(OTHER_SIDES)
        return PerpendicularNegatives(model, row, others, scale, weight, low_memory=low_memory)
    return ClassifierFreeGuidance(model, row, scale, low_memory=low_memory)
