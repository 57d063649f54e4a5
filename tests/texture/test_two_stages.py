"""Figure 1's pipeline, end to end, on tiny models of real block types."""

import gc
import json
import os
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction
from sdslab.denoisers.noise_schedule import (
    WEIGHTINGS,
    NoiseSchedule,
    UniformTimesteps,
)
from sdslab.denoisers.pipelines import PRESETS
from sdslab.denoisers.prompts import BACK, FRONT, SIDE, TOP, view_of
from sdslab.diffusion_guide import DiffusionGuide, Draw, SuperResolution
from sdslab.diffusion_space import PixelSpace
from sdslab.errors import UserError
from sdslab.kernels import SR_CONDITION_STREAM, NoiseKey, sr_condition
from sdslab.meshes.mesh_io import load_mesh
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.rendering.cameras import Cameras, CameraSampler
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.lighting import Environment, LightSampler
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.scene import SceneSampler
from sdslab.texture import two_stages
from sdslab.texture.arguments import (
    Arguments,
    Distillation,
    Exemplar,
    Model,
    Optimization,
    Output,
    Rendering,
    Subject,
)
from sdslab.texture.resolved_arguments import resolved_settings
from sdslab.texture.runner import run
from tests.recorded_calls import watch_recorded_calls

pytestmark = pytest.mark.usefixtures("own_cache")


def arguments(out: Path, one: Path, two: Path | str, **optimization: object) -> Arguments:
    values: dict[str, object] = {"texture_size": 32, "steps": 3, "sr_steps": 2, "views": 2}
    return Arguments(
        Subject(mesh="sphere", prompt="a cow in a suit"),
        Exemplar(),
        Model(model=str(one), sr_model=str(two)),
        Distillation(),
        Optimization(**{**values, **optimization}),  # type: ignore[arg-type]
        Rendering(render_size=32, light=("white",)),
        Output(out=str(out), turntable=0, picture_size=32, preview_every=0, device="cpu"),
    )


def test_a_prompt_textures_a_mesh_in_two_stages(pipelines: Path, tmp_path: Path):
    out = tmp_path / "run"
    given = arguments(out, pipelines / "if-1", pipelines / "if-2")
    run(replace(given, output=replace(given.output, preview_every=2)))
    for file in ("mesh.glb", "stage1/mesh.glb", "contact_sheet.png", "obj", "maps/normal.png"):
        assert (out / file).exists(), file
    log = pd.read_csv(out / "metrics.csv")
    assert list(log["stage"]) == ["stage1"] * 3 + ["stage2"] * 2
    assert len(log["loss"].dropna()) == 5
    assert {path.name for path in (out / "previews").iterdir()} == {
        "stage1-000000.png", "stage1-000002.png", "stage2-000000.png",
    }  # fmt: skip
    one, two = (load_mesh(out / name / "mesh.glb") for name in ("stage1", "."))
    assert one.source_material is not None
    assert two.source_material is not None
    assert not one.source_material.maps.equal(two.source_material.maps)
    record = json.loads((out / "run.json").read_text())
    assert record["kind"] == "deepfloyd"
    stages = record["config"]["stages"]
    assert stages["stage2"]["steps"] == record["config"]["optimization"]["sr_steps"] == 2
    assert stages["stage1"]["guidance_scale"] == 15
    assert stages["stage1"]["timesteps"]["kind"] == "SqrtAnnealedTimesteps"
    assert record["config"]["distillation"]["weighting"] == "x0_castex"
    assert record["config"]["subject"]["init"] == "grey"
    assert "exemplar" not in record["config"]
    assert not list(out.glob("checkpoint-*"))


def test_latent_models_run_both_stages_with_text_encoders_of_their_own(
    pipelines: Path, tmp_path: Path
):
    run(arguments(tmp_path / "run", pipelines / "sd", pipelines / "upscaler", steps=1, sr_steps=1))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["kind"] == record["config"]["subject"]["guidance"] == "stable-diffusion"
    assert record["config"]["stages"]["stage1"]["weighting"] == "epsilon_dreamfusion"
    assert record["config"]["stages"]["stage1"]["timesteps"]["t_max"] == 980
    assert (tmp_path / "run" / "mesh.glb").exists()


def test_a_deep_image_prior_is_a_material_too(pipelines: Path, tmp_path: Path):
    run(
        arguments(
            tmp_path / "run", pipelines / "if-1", "none",
            parameterization="dip", texture_size=64, steps=1, frozen=("metallic",),
        )
    )  # fmt: skip
    mesh = load_mesh(tmp_path / "run" / "mesh.glb")
    assert mesh.source_material is not None
    normals = 2 * mesh.source_material.maps[..., 5:8] - 1
    assert (normals.norm(dim=-1) - 1).abs().max() < 0.02  # eight bits


class Listens(Denoiser):
    """Remembers its condition."""

    def __init__(self) -> None:
        self.schedule = NoiseSchedule.deepfloyd_if()
        self.heard: list[Condition] = []

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, condition: Condition | None = None
    ) -> Prediction:
        assert len(t) == len(x_t)
        assert condition is not None
        self.heard.append(condition)
        return Prediction(torch.zeros_like(x_t), "epsilon")


def test_stage_two_is_shown_the_same_view_light_and_background():
    """CasTex's own code draws another background; then the two disagree outside the object."""
    renderer = Renderer(PROCEDURAL_MESHES["torus"](), CpuBackend())
    rows = torch.linspace(0.2, 1.5, 16)[:, None, None].expand(16, 32, 3).contiguous()
    lights = LightSampler((Environment.from_radiance(rows, resolution=16),), seed=1)
    scenes = SceneSampler(CameraSampler(radius=(3.5, 3.5)), lights, "random", 64, seed=1)
    maps = torch.rand(16, 16, 8, generator=torch.Generator().manual_seed(0))
    denoiser = Listens()
    guide = DiffusionGuide(
        denoiser, lambda cameras: torch.zeros(len(cameras), dtype=torch.int64), renderer,
        Draw(UniformTimesteps(), 10, 7), WEIGHTINGS["x0_castex"], 1.0,
        super_resolution=SuperResolution(maps, 16),
    )  # fmt: skip
    scene = scenes.sample(3, 2, renderer.extreme_points)
    surface = renderer.see(scene.cameras, 64)
    picture = renderer.picture(surface, maps, scene.lighting, scene.background)
    z = PixelSpace(32).encode(picture)
    guide(z, 3, scene, surface)
    condition = denoiser.heard[0]
    level = torch.full((2,), 500)
    noise = NoiseKey(7, 3, torch.arange(2), SR_CONDITION_STREAM)
    expected = sr_condition(
        picture, denoiser.schedule.alpha_bar(level), noise, size=32, low_size=16
    )
    assert condition.low_resolution is not None
    assert condition.noise_level is not None
    torch.testing.assert_close(condition.low_resolution, expected)
    assert condition.noise_level.tolist() == [500, 500]
    # Another step's background would not do.
    other = scenes.sample(4, 2, renderer.extreme_points).background
    elsewhere = renderer.picture(surface, maps, scene.lighting, other)
    assert (elsewhere - picture).abs().max() > 0.05


class Constant(Denoiser):
    """x̂_0 = 0, whatever it is asked."""

    def __init__(self) -> None:
        self.schedule = NoiseSchedule.deepfloyd_if()

    def predict(
        self,
        x_t: torch.Tensor,
        t: torch.Tensor,  # noqa: ARG002
        condition: Condition | None = None,  # noqa: ARG002
    ) -> Prediction:
        return Prediction(torch.zeros_like(x_t), "x0")


@pytest.mark.parametrize("stage_one", [False, True], ids=["stage I", "stage II"])
def test_the_guides_options_do_what_they_say(stage_one: bool):
    renderer = Renderer(PROCEDURAL_MESHES["sphere"](), CpuBackend())
    scenes = SceneSampler(CameraSampler(), None, "grey", 32, seed=1)
    scene = scenes.sample(3, 4, renderer.extreme_points)
    surface = renderer.see(scene.cameras, 32)
    z = torch.linspace(-2, 2, 4 * 3 * 16 * 16).view(4, 3, 16, 16)

    def guided(
        denoiser: Denoiser | None = None,
        gradient_clamp: float | None = None,
        condition_schedule: NoiseSchedule | None = None,
        **draw: Any,
    ) -> tuple[torch.Tensor, Any]:
        frozen = torch.full((8, 8, 8), 0.5)
        sr = SuperResolution(frozen, 8, schedule=condition_schedule)
        guide = DiffusionGuide(
            denoiser or Constant(),
            lambda cameras: torch.zeros(len(cameras), dtype=torch.int64),
            renderer,
            Draw(UniformTimesteps(), 10, 7, **draw),
            WEIGHTINGS["x0_unit"],
            None,
            gradient_clamp,
            sr if stage_one else None,
        )
        draws = guide.draw(3, scene.cameras)
        return guide.gradient(z, draws, scene, surface).gradient, draws

    free, draws = guided()
    torch.testing.assert_close(free, z / 4)  # w (x_0 − x̂_0) = z, and their mean over four views
    bounded, _ = guided(gradient_clamp=0.3)
    torch.testing.assert_close(bounded, z.clamp(-0.3, 0.3) / 4)
    _, shared = guided(shared_timestep=True)
    assert draws.t.unique().numel() > 1
    assert shared.t.equal(draws.t[:1].expand(4))  # that of the first picture
    if stage_one:
        heard = []
        for schedule in (None, NoiseSchedule.stable_diffusion()):
            listens = Listens()
            guided(listens, condition_schedule=schedule)
            condition, level = listens.heard[0].low_resolution, torch.full((4,), 500)
            alpha_bars = (schedule or listens.schedule).alpha_bar(level)
            render = renderer.picture(
                surface, torch.full((8, 8, 8), 0.5), scene.lighting, scene.background
            )
            noise = NoiseKey(7, 3, torch.arange(4), SR_CONDITION_STREAM)
            expected = sr_condition(render, alpha_bars, noise, size=16, low_size=8)
            torch.testing.assert_close(condition, expected)
            heard.append(condition)
        assert not torch.equal(*heard)


def test_the_prompt_follows_the_side_that_is_seen():
    azimuth = torch.tensor([90.0, 180.0, 270.0, 0.0, 90.0])
    elevation = torch.tensor([0.0, 0.0, 0.0, 0.0, 60.0])
    fives = torch.full((5,), 5.0)
    eye = Cameras.orbit(azimuth, elevation, fives, fives).eye
    assert view_of(eye).tolist() == [FRONT, SIDE, BACK, SIDE, TOP]


def test_presets_are_the_papers_and_can_be_overridden(pipelines: Path):
    one, two = PRESETS["castex"].stage_one, PRESETS["castex"].stage_two
    assert (one.steps, two.steps, one.guidance_scale, two.guidance_scale) == (500, 1000, 15, 10)
    assert (one.views, one.learning_rate, one.shared_timestep) == (8, 0.01, True)
    assert (one.x0_bound, one.weighting, one.learning_rate_schedule) == (
        "clamp", "x0_castex", "step",
    )  # fmt: skip
    assert one.timesteps.bounds(0.0) == (300, 980)
    assert one.timesteps.bounds(1.0) == (200, 500)
    given = arguments(Path("x"), pipelines / "if-1", "none")
    own = Distillation(
        guidance_scale=25.0, timesteps=(20, 600), timestep_per="picture", x0_bound="dynamic",
        gradient_clamp=2.0, weighting="epsilon_dreamfusion", sr_condition="pipeline",
    )  # fmt: skip
    preset = resolved_settings(replace(given, distillation=own))
    assert preset.stage_one.guidance_scale == 25
    assert preset.stage_one.model == str(pipelines / "if-1")
    assert preset.stage_two.model is None
    for settings in (preset.stage_one, preset.stage_two):
        assert settings.timesteps.bounds(0.5) == (20, 600)
        assert settings.shared_timestep is False
        assert (settings.x0_bound, settings.gradient_clamp) == ("dynamic", 2.0)
        assert settings.weighting == "epsilon_dreamfusion"
    assert (preset.stage_one.sr_mode, preset.stage_two.sr_mode) == ("castex", "pipeline")
    latent = resolved_settings(arguments(Path("x"), pipelines / "sd", "none"))
    assert latent.stage_one.x0_bound == "none"
    wrong = replace(given, subject=replace(given.subject, guidance="stable-diffusion"))
    with pytest.raises(UserError, match="which is IF-I; leave --guidance out"):
        resolved_settings(wrong)


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        ("if-2", "if-2", "--model must be a model for stage 1, got .* serves stage 2"),
        ("if-1", "sd", "--sr-model must be a model for stage 2, got .* serves stage 1"),
        ("nothing-here", "none", "must be an existing folder or a hub id"),
    ],
)
def test_models_of_the_wrong_stage_are_refused(
    one: str, two: str, message: str, pipelines: Path, tmp_path: Path
):
    second = two if two == "none" else pipelines / two
    with pytest.raises(UserError, match=message):
        run(arguments(tmp_path / "run", pipelines / one, second))
    assert not (tmp_path / "run").exists()


PAIRS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Stable Diffusion": ("sd", "upscaler", {}),
    "DeepFloyd, Perp-Neg, thresholds": ("if-1", "if-2", {"perp_neg": 0.5, "x0_bound": "dynamic"}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_steps_that_are_to_be_recorded_are_the_same_and_need_no_host(
    name: str, pipelines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one, two, distillation = PAIRS[name]
    given = arguments(tmp_path / "run", pipelines / one, pipelines / two)
    given = replace(given, distillation=Distillation(**distillation))
    calls = watch_recorded_calls(monkeypatch)
    run(given)
    assert not calls
    monkeypatch.setattr(two_stages, "_check_graph", lambda _: None)  # as if there were a GPU
    recorded = replace(
        given,
        model=replace(given.model, graph=True),
        output=replace(given.output, out=str(tmp_path / "recorded")),
    )
    run(recorded)
    assert len(calls) == 2 * (2 + 1)
    assert min(calls) > 1
    losses, expected = (
        pd.read_csv(tmp_path / folder / "metrics.csv")["loss"].tolist()
        for folder in ("recorded", "run")
    )
    assert losses == pytest.approx(expected, rel=1e-4)


def test_a_graph_needs_a_gpu(pipelines: Path, tmp_path: Path):
    given = arguments(tmp_path / "run", pipelines / "if-1", "none")
    with pytest.raises(UserError, match="--graph needs a CUDA device, got cpu; leave it out"):
        run(replace(given, model=replace(given.model, graph=True)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("graph", [False, True], ids=["launched", "recorded"])
@pytest.mark.parametrize("offload", [False, True], ids=["resident", "offloaded"])
def test_stage_one_s_model_is_gone_when_stage_two_s_is_loaded(
    graph: bool, offload: bool, pipelines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded: list[weakref.ref[torch.nn.Module]] = []
    alive: list[int] = []
    full_float32: list[bool] = []
    load = two_stages.load_guidance

    def watched(*arguments: Any, **options: Any) -> Any:
        alive.append(sum(model() is not None for model in loaded))
        full_float32.append(not torch.backends.cudnn.allow_tf32)
        model = load(*arguments, **options)
        loaded.append(weakref.ref(model.unet))
        return model

    monkeypatch.setattr(two_stages, "load_guidance", watched)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    monkeypatch.setattr(two_stages, "_check_graph", lambda _: None)  # as if there were a GPU
    given = arguments(tmp_path / "run", pipelines / "if-1", pipelines / "if-2", steps=2, sr_steps=1)
    given = replace(given, rendering=replace(given.rendering, unlit=True, light=()))
    gc.disable()  # what a cycle holds must not wait for it
    try:
        run(replace(given, model=replace(given.model, graph=graph, offload=offload)))
    finally:
        gc.enable()
    assert alive == [0, 0]
    assert full_float32 == [True, True]
    assert torch.backends.cudnn.allow_tf32  # as it was
    if sys.platform == "linux":
        assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
