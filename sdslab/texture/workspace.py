"""What every guidance works with: the mesh, the light, the renderer and the run's folder."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdslab.errors import UserError
from sdslab.kernels import NoiseKey, philox_uniform
from sdslab.kernels.philox import INITIALIZATION_STREAM
from sdslab.machine import resolve_device
from sdslab.material_recovery import grey_material
from sdslab.meshes.material import ALBEDO, without
from sdslab.meshes.mesh import Mesh
from sdslab.optimization.material_optimization import MaterialConfig
from sdslab.optimization.optimizer_state import OptimizeConfig
from sdslab.parameterizations.deep_image_prior import DeepImagePrior
from sdslab.parameterizations.parameterization import Parameterization, own_material
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.rendering.backends import make_backend
from sdslab.rendering.cameras import CAMERA_SAMPLERS
from sdslab.rendering.lighting import LightSampler
from sdslab.rendering.preview import Previewer
from sdslab.rendering.render_backend import RenderBackend
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.scene import SceneSampler
from sdslab.rendering.texels import SeenTexels, covered_texels
from sdslab.report.at_the_end import reported
from sdslab.runs.checkpoint import Checkpoint, Checkpoints, OtherCodeError
from sdslab.runs.lock import RunLock
from sdslab.runs.record import code_digests, recorded, run_record, version_of
from sdslab.runs.schema import read_run
from sdslab.shell.named_inputs import is_named_object
from sdslab.shell.progress_lines import ProgressLines, tell
from sdslab.texture.arguments import Arguments, GuidanceName
from sdslab.texture.inputs import (
    BACKEND,
    Inputs,
    load_lights,
    load_named_mesh,
    load_target,
    own_maps,
    with_opacity,
)
from sdslab.texture.resolved_arguments import recorded_config
from sdslab.texture.run_folder import LOG, OUTPUTS, decisive, own_outputs

if TYPE_CHECKING:
    from sdslab.texture.live import LiveView

CPU = torch.device("cpu")
WITHOUT_EFFECT = ("report", "study", "train_vae")  # parts of the package, on a run's result


@dataclass(frozen=True, eq=False)
class Workspace:
    """A run, set up.

    Attributes:
        arguments: with every default filled in.
        out: the run's folder.
        device: where it computes.
        backend: of the renderer.
        mesh: what is textured.
        lights: of the steps, or None for unlit pictures.
        inputs: the files that it reads.
        held: what ends with the run: its record, the report and the folder's lock.
    """

    arguments: Arguments
    out: Path
    device: torch.device
    backend: RenderBackend
    mesh: Mesh
    lights: LightSampler | None
    inputs: Inputs
    held: ExitStack

    @classmethod
    def open(
        cls,
        arguments: Arguments,
        out: Path,
        inputs: Inputs,
        progress: ProgressLines,
        held: ExitStack,
    ) -> "Workspace":
        """Loads the light and the mesh; writes nothing.

        Raises:
            UserError: one of them cannot be had, or the renderer cannot run here.
        """
        device = resolve_device(arguments.output.device)
        backend = make_backend(arguments.rendering.renderer, device)
        lights = load_lights(arguments, device, progress)
        mesh = load_named_mesh(arguments, inputs, progress)
        mesh = with_opacity(mesh, arguments.optimization.texture_size)
        return cls(arguments, out, device, backend, mesh, lights, inputs, held)

    @property
    def guidance(self) -> GuidanceName:
        """Which guidance runs."""
        assert self.arguments.subject.guidance is not None
        return self.arguments.subject.guidance

    @property
    def texture_size(self) -> int:
        """Height and width of the maps."""
        return self.arguments.optimization.texture_size

    @cached_property
    def live(self) -> "LiveView | None":
        """The page that shows the run, if one is wanted; it is there until the run ends."""
        if not self.arguments.output.live:
            return None
        from sdslab.texture.live import LiveView
        from sdslab.texture.live_picture import LiveScene

        names = self.arguments.rendering.light
        lights = self.lights.environments if self.lights else ()
        scene = LiveScene(
            # The maps that came with the file may be huge, and are not shown.
            dataclasses.replace(self.mesh, source_material=None),
            {name: light.to(CPU) for name, light in zip(names, lights, strict=False)},
            self.arguments.rendering.color_mode,
        )
        port = self.arguments.output.live_port
        return self.held.enter_context(LiveView(scene, self.out, self.texture_size, port, tell))

    @cached_property
    def renderer(self) -> Renderer:
        """Renderer of the steps' pictures."""
        rendering = self.arguments.rendering
        return Renderer(
            self.mesh, self.backend, self.device, rendering.color_mode, rendering.supersampling
        )

    @cached_property
    def previewer(self) -> Previewer:
        """Renderer of pictures for people, on white in the first light."""
        color_mode = self.arguments.rendering.color_mode
        return Previewer(
            Renderer(self.mesh, self.backend, self.device, color_mode, supersampling=2),
            self.lights.environments[0] if self.lights else None,
            self.arguments.output.picture_size,
        )

    @cached_property
    def covered(self) -> Tensor:
        """[size, size] bool on the CPU: texels that a face covers."""
        return covered_texels(self.mesh, (self.texture_size, self.texture_size), BACKEND)

    def unseen(self) -> SeenTexels:
        """Marks of the maps' texels, none of which was looked at."""
        return SeenTexels((self.texture_size, self.texture_size), self.device)

    def config(
        self, optimization: Callable[[int, float], OptimizeConfig], initial: Tensor
    ) -> MaterialConfig:
        """What each step of a run of one stage does.

        Args:
            optimization: from the steps and the learning rate that the command line says.
            initial: see `MaterialConfig`.
        """
        given = self.arguments.optimization
        assert given.steps is not None
        assert given.views is not None
        assert given.learning_rate is not None
        how = optimization(given.steps, given.learning_rate)
        return MaterialConfig(given.views, how, given.held, initial)

    def scenes(self, render_size: int | None = None, stage: int = 1) -> SceneSampler:
        """Views, lights and backgrounds; each stage has its own."""
        rendering = self.arguments.rendering
        render_size = render_size or rendering.render_size
        assert render_size is not None
        seed = self.seed(stage)
        cameras = CAMERA_SAMPLERS[rendering.cameras]
        lights = self.lights and dataclasses.replace(self.lights, seed=seed)
        background = rendering.background
        return SceneSampler(cameras, lights, background, render_size, seed, self.device)

    def seed(self, stage: int = 1) -> int:
        """Seed of a stage: stages of one run, and runs of near seeds, draw nothing alike."""
        return self.arguments.optimization.seed + ((stage - 1) << 41)

    def target(self) -> Tensor:
        """The material to recover, [size, size, 8] on the CPU.

        Raises:
            UserError: ``--target`` names nothing that fits the mesh.
        """
        source = self.arguments.subject.target
        assert source is not None
        return self._material(source, "--target must be a material that fits the mesh")

    def initial_maps(self) -> Tensor:
        """Where θ starts, [size, size, 8] on the CPU; disabled maps are neutral.

        Raises:
            UserError: ``--init`` names nothing that fits the mesh.
        """
        subject, size = self.arguments.subject, self.texture_size
        assert subject.init is not None
        match subject.init:
            case "grey" | "random":
                maps = grey_material(size, self.arguments.rendering.unlit)
                if subject.init == "random":
                    key = NoiseKey(self.seed(), 0, torch.arange(1), INITIALIZATION_STREAM)
                    maps[..., ALBEDO] = philox_uniform(key, 3 * size**2).view(size, size, 3)
            case "source":
                maps = own_maps(self.mesh, size)
            case other:
                must = "--init must be grey, random, source, or a material that fits the mesh"
                maps = self._material(other, must)
        return without(maps, self.arguments.optimization.disable)

    def _material(self, source: str, must: str) -> Tensor:
        try:
            file = self.inputs.meshes.get(source)
            return load_target(source, self.mesh, self.texture_size, file)
        except UserError as error:
            raise UserError(f"{must}, got {source!r}: {error}") from error

    def theta(self, initial: Tensor, scale: Tensor | None = None) -> Parameterization:
        """θ that starts from some maps; a network of ours or of the user's from its own weights.

        Args:
            initial: [size, size, 8].
            scale: of a `TexelGrid`.
        """
        given, size = self.arguments.optimization.parameterization, self.texture_size
        if is_named_object(given):
            return own_material(given, initial, self.seed(), self.device)
        if given == "dip":
            return DeepImagePrior((1, 8, size, size), self.seed()).to(self.device)
        return TexelGrid(initial, scale).to(self.device)

    def begin(self) -> None:
        """Takes the folder: locks it, removes what an earlier run left, writes ``run.json``.

        To be called when nothing else can be refused any more, before anything is computed.

        Raises:
            UserError: another process works in the folder, or its checkpoint is another run's.
        """
        self.inputs.meshes.clear()  # nothing is loaded any more
        lock = self.held.enter_context(RunLock(self.out))
        going_on = self.resumed
        changes = going_on and going_on.code_changes
        accepted = f"goes on with other code: {', '.join(changes)}" if changes else None
        for note in (lock.note, going_on and going_on.note, accepted):
            if note:
                tell(note)
        if self.resumed is not None:
            self._keep_the_first_command()
        kept = [path for name in LOG for path in self.out.glob(name)] if self.resumed else []
        left = set(own_outputs(self.out, {})) - set(kept)
        if self.resumed is None:
            self.checkpoints.clear()
        self.held.enter_context(reported(self.out))
        record = recorded(self.out / "run.json", self.record, self.device, OUTPUTS)
        self.held.enter_context(record)
        for path in left:  # no file is older than its run.json
            path.unlink(missing_ok=True)
        _ = self.live  # its page opens while the first step is computed

    def _keep_the_first_command(self) -> None:
        """A run that goes on is one run: what began it makes it again."""
        assert self.resumed is not None
        changes: list[Any] = []
        with suppress(UserError):
            before = read_run(self.out / "run.json")
            kept = {name: before[name] for name in ("command", "started")}
            self.record.update(kept)
            earlier = before["details"].get("code_changes")
            changes += earlier if isinstance(earlier, list) else []
            if self.resumed.code_changes:
                versions = {"from": version_of(before), "to": version_of(self.record)}
                changes.append({**versions, "changed": list(self.resumed.code_changes)})
        if changes:
            self.record["details"]["code_changes"] = changes

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """Checkpoints of the run."""
        accept = self.arguments.output.accept_code_change
        return Checkpoints(self.out, self._identity(), accept_code=accept)

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on from its checkpoint, bit for bit."""
        packages = self.record["packages"]
        return {
            "code": code_digests(WITHOUT_EFFECT),
            "versions": {name: packages[name] for name in ("torch", "numpy", "numba")},
            "device": self.device.type,
            "inputs": self.inputs.digests,
            "stages": self.record["config"].get("stages"),
            **decisive(dataclasses.asdict(self.arguments)),
        }

    @cached_property
    def resumed(self) -> Checkpoint | None:
        """What the run goes on from, or None.

        Raises:
            UserError: other code began it and that is not accepted, or it is another run's.
        """
        if self.arguments.output.fresh:
            return None
        try:
            return self.checkpoints.latest()
        except OtherCodeError as error:
            now, before = version_of(self.record), "an unknown version"
            with suppress(UserError):
                before = version_of(read_run(self.out / "run.json"))
            raise UserError(
                f"the run in {str(self.out)!r} was begun by {before}, this is {now}, which differs "
                f"in {', '.join(error.changes)}: its steps would not be the same; "
                f"--accept-code-change goes on, --fresh starts over"
            ) from error

    @cached_property
    def record(self) -> dict[str, Any]:
        """For ``run.json``."""
        record = run_record(
            recorded_config(self.arguments, self.guidance),
            self.device,
            program="texture",
            kind=self.guidance,
            seeds=(self.arguments.optimization.seed,),
        )
        record["details"]["inputs"] = self.inputs.digests
        record["details"]["mesh"] = {
            "name": self.mesh.name,
            "faces": len(self.mesh.faces),
            "vertices": len(self.mesh.positions),
            "up": self.mesh.up,
            "notes": list(self.mesh.notes),
        }
        return record
