"""``--live``: a page that shows the material as it forms, and pauses, steps and saves the run."""

import contextlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor

from sdslab.interrupts import interrupts_held
from sdslab.meshes.export_glb import export_glb, glb_bytes
from sdslab.meshes.mesh import Mesh
from sdslab.meshes.seam_dilation import dilate_seams
from sdslab.optimization.optimize import Step
from sdslab.texture.target import resize_maps

HOST = "127.0.0.1"  # this machine alone: whoever reaches the page can pause the run
LARGEST_MAPS = 512  # height and width of what is sent
SHARE = 0.1  # of the time, at most, that sending takes
RELOAD_SECONDS = 5.0  # a pause ends so long after the last page has gone
LIGHTS = ("studio", "city", "forest", "sunset", "night", "warehouse", "apartment", "park")
EYE = (2.0, 1.2, 2.8)


class LiveView:
    """Serves a run with viser while the block runs; nothing that it does changes the result.

    The page's controls are heard in viser's threads and obeyed between two steps. A browser that
    goes away changes nothing.

    Args:
        mesh: what is textured.
        covered: [size, size] bool, the texels that a face covers.
        out: the run's folder, for what is saved.
        port: to listen on; another one if it is taken, 0 for any.
    """

    def __init__(self, mesh: Mesh, covered: Tensor, out: Path, port: int) -> None:
        self.mesh, self.covered, self.out, self.port = mesh, covered, out, port
        self._small_covered = _shrunk(covered)
        self._steps_asked = self._saves_asked = 0
        self._seen_by: set[int] = set()
        self._glb: Any = None
        self._next_update = 0.0
        self._last_seen = time.monotonic()

    def __enter__(self) -> Self:
        import viser  # an extra, for which `check` has asked

        with contextlib.redirect_stdout(io.StringIO()):  # it prints a banner
            self.server = viser.ViserServer(host=HOST, port=self.port, verbose=False)
        # Sharing would show the run to the world through a server of viser's.
        self.server.gui.configure_theme(control_width="small", show_share_button=False)
        scene = self.server.scene
        scene.set_up_direction("+y")
        self.server.initial_camera.position = EYE
        self.server.initial_camera.look_at = (0.0, 0.0, 0.0)
        self._add_controls()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server.get_port()}"

    @property
    def paused(self) -> bool:
        """Whether the run waits at its next step."""
        return self._paused.value

    @paused.setter
    def paused(self, value: bool) -> None:
        self._paused.value = value

    def ask(self, what: Literal["step", "save"]) -> None:
        """What the page's buttons do: one step, after which the run is paused; or a save."""
        if what == "step":
            self.paused = True
            self._steps_asked += 1
        else:
            self._saves_asked += 1

    def follow(
        self,
        name: str,
        step: Step,
        total: int,
        maps: Callable[[], Tensor],
        save: Callable[[], object],
    ) -> float:
        """Shows a step, and waits while the page says so.

        Args:
            name: of the stage.
            step: which step it is.
            total: steps of the stage.
            maps: gives the material [size, size, 8] on the CPU.
            save: writes a checkpoint.

        Returns:
            Seconds that it took, and waited.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM came while the run was paused.
        """
        start = time.perf_counter()
        self._status.content = (
            f"**{name}** step {step.index + 1} of {total}  \nloss {step.loss:.4g}, "
            f"|g| {step.gradient_norm:.3g}"
        )
        self._show(maps)
        with interrupts_held() as raise_if_interrupted:
            while True:
                if self._saves_asked:
                    self._saves_asked = 0
                    save()
                    maps_now = dilate_seams(maps(), self.covered)
                    export_glb(self.mesh, maps_now, self.out / "mesh.glb")
                    self._status.content += "  \nsaved"
                if self._left_alone():
                    self.paused = False
                if not self.paused or self._steps_asked:
                    break
                self._show(maps)
                raise_if_interrupted()
                time.sleep(0.02)
        self._steps_asked = max(0, self._steps_asked - 1)
        return time.perf_counter() - start

    def _left_alone(self) -> bool:
        """Whether the last page is gone, and not for a reload: nobody could end a pause."""
        now = time.monotonic()
        if self.server.get_clients():
            self._last_seen = now
        return now - self._last_seen > RELOAD_SECONDS

    def _show(self, maps: Callable[[], Tensor]) -> None:
        """Sends the material to whoever looks, if it is time, and always to who has just come."""
        here = set(self.server.get_clients())
        start = time.perf_counter()
        if here <= self._seen_by and (start < self._next_update or not here):
            self._seen_by &= here
            return
        material = dilate_seams(_resized(maps()), self._small_covered)
        content = glb_bytes(self.mesh, material)
        if self._glb is None:
            fit = self.mesh.normalization
            place = tuple((-fit.center * fit.scale).tolist())
            scene = self.server.scene
            self._glb = scene.add_glb("/mesh", content, scale=fit.scale, position=place)
        else:
            self._glb.glb_data = content
        self._seen_by = here
        now = time.perf_counter()
        self._next_update = now + (now - start) / SHARE

    def _add_controls(self) -> None:
        gui, scene = self.server.gui, self.server.scene
        self._status = gui.add_markdown("waiting for the first step")
        self._paused = gui.add_checkbox("Paused", False)
        step, save = gui.add_button("Step"), gui.add_button("Save")
        light = gui.add_dropdown("Light", LIGHTS)
        brightness = gui.add_slider("Brightness", 0.0, 3.0, 0.1, 1.0)

        step.on_click(lambda _: self.ask("step"))
        save.on_click(lambda _: self.ask("save"))

        def shine(_event: Any = None) -> None:
            intensity = brightness.value
            scene.configure_environment_map(light.value, environment_intensity=intensity)

        light.on_update(shine)
        brightness.on_update(shine)
        scene.configure_default_lights(False)
        shine()


def _resized(maps: Tensor) -> Tensor:
    return resize_maps(maps, LARGEST_MAPS) if len(maps) > LARGEST_MAPS else maps


def _shrunk(covered: Tensor) -> Tensor:
    """Texels of the maps that are sent of which every one beneath is covered."""
    factor = max(1, len(covered) // LARGEST_MAPS)
    uncovered = torch.nn.functional.max_pool2d((~covered)[None].float(), factor)
    return uncovered[0] == 0
