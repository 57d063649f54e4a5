"""The page of ``--live``: viser in a process of its own, with pictures by our own renderer.

viser's 3D scene is left empty: its browser side tone-maps whatever lies there, and no light but its
own presets can be set. Each page shows a picture of its camera's view as the scene's background
instead, which is how ``front.png`` looks: a coarse one at once while the camera moves, then a fine
one. Unlike in a browser's WebGL, that needs no GPU on either side.
"""

import contextlib
import functools
import math
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sdslab.errors import one_line
from sdslab.rendering.cameras import six_views
from sdslab.texture.live_picture import (
    LOOKS,
    Choice,
    LiveScene,
    Painter,
    covered_at,
    fitted,
    stand_back,
)

Command = Literal["pause", "resume", "step", "save"]

HOST = "127.0.0.1"  # this machine alone: whoever reaches the page can pause the run
FOV_DEG = 30.0  # as of `six_views`
SHARE = 0.25  # of a core, that following the run's maps takes while nobody moves anything
PATIENCE = 10.0  # seconds after which there are new maps even so
RUNNING = "the running one"
COLOR = "#228be6"  # of curves: the theme's own blue


def serve(connection: Any, scene_file: Path, port: int, reload_seconds: float) -> None:
    """The process: serves until the run ends or is gone.

    Args:
        connection: to the run; the messages are those of `LiveView`.
        scene_file: what the run has pickled, in a folder of the two alone.
        port: to listen on, 0 for any.
        reload_seconds: how long after the last browser has gone a pause ends.
    """
    silence = os.open(os.devnull, os.O_WRONLY)  # viser prints a banner
    for descriptor in (1, 2):
        os.dup2(silence, descriptor)
    try:
        scene, out = pickle.loads(scene_file.read_bytes())
        torch.set_num_threads(1)  # the others are the run's
        with contextlib.closing(Page(scene, out, port, connection)) as page:
            connection.send(("url", page.url))
            page.work(reload_seconds)
    except (EOFError, OSError):  # the run is gone
        pass
    except Exception as error:  # whatever it is: the run is told, and goes on
        with contextlib.suppress(OSError):
            connection.send(("failed", f"{type(error).__name__}: {error}"))
    os._exit(0)  # viser's threads need not be waited for


class Page:
    """The server, its controls, and the pictures of every browser.

    Args:
        scene: what is shown.
        out: the run's folder, for its name.
        port: to listen on, 0 for any.
        connection: to the run.
    """

    def __init__(self, scene: LiveScene, out: Path, port: int, connection: Any) -> None:
        import viser

        self.scene, self.connection = scene, connection
        self.state: dict[str, Any] = {}
        self.sent = 0  # commands
        self.latest_maps: tuple[float, float] | None = None  # clock and CPU seconds
        self.curves: dict[str, list[tuple[int, float]]] = {}  # by stage
        self.chart: Any = None
        self.drawn: tuple[str, tuple[int, float]] | None = None  # its stage and last point
        self.lock, self.sending = threading.RLock(), threading.Lock()
        label = one_line(out.name)
        self.server = viser.ViserServer(host=HOST, port=port, label=label, verbose=False)
        self.painter = Painter(self.server, scene, self._choice)
        self._covered = functools.lru_cache(functools.partial(covered_at, scene.mesh))
        self._set_scene()
        self._add_controls()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server.get_port()}"

    def close(self) -> None:
        """Ends the server."""
        self.server.stop()

    def work(self, reload_seconds: float) -> None:
        """Until the run ends: shows what it sends, and asks for more."""
        threading.Thread(target=self.painter.work, daemon=True).start()
        asked_as = None  # with maps or without
        last_seen = time.monotonic()
        while "ended" not in self.state:
            if self.painter.fault is not None:
                raise self.painter.fault
            watched = bool(self.server.get_clients())
            wanted = watched and (self._paused or self._can_afford_maps())
            if wanted != asked_as:
                self._send("ready", wanted)
                asked_as = wanted
            if self.connection.poll(0.1):
                self._take(self.connection.recv())
                asked_as = None
            if watched or not self._paused:
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > reload_seconds:
                self.command("resume")
        self.server.flush()
        time.sleep(0.5)  # for it to leave

    def _can_afford_maps(self) -> bool:
        if self.latest_maps is None:
            return True
        elapsed = time.monotonic() - self.latest_maps[0]
        return elapsed > PATIENCE or time.process_time() - self.latest_maps[1] <= SHARE * elapsed

    def command(self, command: Command) -> None:
        """Passes a click on; the page shows at once what it will come to."""
        with self.lock:
            self.sent += 1
            if command != "save":
                self.state["paused"] = command != "resume"
            else:
                self._note("Saving after this step …")
            self._show_state()
        self._send("command", command)

    def _send(self, what: str, value: object) -> None:
        with self.sending, contextlib.suppress(OSError):  # the run may be gone
            self.connection.send((what, value))

    @property
    def _paused(self) -> bool:
        return bool(self.state.get("paused"))

    def _set_scene(self) -> None:
        server = self.server
        # Sharing would show the run to the world through a server of viser's.
        server.gui.configure_theme(show_logo=False, show_share_button=False)
        server.gui.main_panel.dock_right()  # beside the object, not over it
        server.scene.set_up_direction("+y")
        server.scene.world_axes.visible = False
        server.scene.configure_default_lights(False)
        server.scene.configure_environment_map(None)
        self.radius = self.painter.renderers[1].bounding_radius
        front = six_views(self.radius, FOV_DEG)
        server.initial_camera.position = front.eye[0].numpy()
        server.initial_camera.look_at = (0.0, 0.0, 0.0)
        server.initial_camera.fov = math.radians(FOV_DEG)

        async def arrive(client: Any) -> None:
            self._look_from_the_front(client)
            client.camera.on_update(lambda _: self.painter.wake.set())
            self.painter.wake.set()

        server.on_client_connect(arrive)

    def _look_from_the_front(self, client: Any) -> None:
        """Where ``front.png`` is seen from."""
        client.camera.up_direction = (0.0, 1.0, 0.0)
        client.camera.position = six_views(self.radius, FOV_DEG).eye[0].numpy()
        client.camera.look_at = (0.0, 0.0, 0.0)

    def _add_controls(self) -> None:
        gui = self.server.gui
        self.status = gui.add_markdown("waiting for the first step")
        self.progress = gui.add_progress_bar(0.0)
        self.buttons = gui.add_button_group("Run", ("Pause", "Step", "Save"))
        self.notice = gui.add_markdown("", visible=False)
        self.stage = gui.add_dropdown("Stage", (RUNNING,), initial_value=RUNNING)
        self.look = gui.add_dropdown("Show", LOOKS)
        lights = tuple(self.scene.lights) or ("none",)
        self.light = gui.add_dropdown("Light", lights, visible=len(lights) > 1)
        self.exposure = gui.add_slider(
            "Exposure", -3.0, 3.0, 0.25, 0.0, visible=bool(self.scene.lights)
        )
        front = gui.add_button("Front view")

        async def press(event: Any) -> None:
            self.command(event.target.value.lower())
            self.painter.wake.set()

        async def redraw(_: Any) -> None:
            with self.lock:
                self._show_curve()
            self.painter.wake.set()

        async def look(event: Any) -> None:
            self._look_from_the_front(event.client)

        self.buttons.on_click(press)
        front.on_click(look)
        for control in (self.stage, self.look, self.light, self.exposure):
            control.on_update(redraw)

    def _take(self, news: dict[str, Any]) -> None:
        """Shows what the run has sent."""
        for stage, path in news.pop("maps", ()):
            if self.latest_maps is not None:
                stand_back()  # the first are urgent
            self.latest_maps = time.monotonic(), time.process_time()
            maps = torch.from_numpy(np.load(path)).float()
            Path(path).unlink()
            covered = self._covered(len(maps))
            self.painter.take(stage, fitted(maps, covered, len(maps)))
        with self.lock:
            if news.pop("heard", self.sent) < self.sent:  # it has not come to the latest click yet
                news.pop("paused", None)
            self.state |= news
            if "notice" in news or "ended" in news:
                self._note(news.get("ended") or news["notice"])
            self.curves = news.get("curves", self.curves)
            self._show_state()
            self._show_curve()
        self.painter.wake.set()

    def _note(self, text: str) -> None:
        self.notice.content, self.notice.visible = text, True

    def _show_state(self) -> None:
        state = self.state
        if "step" not in state:
            return
        text = f"**{state['stage']}** · step {state['step']} of {state['total']}"
        if state["loss"] is not None:
            text += f" · loss {state['loss']:.4g}"
        text += f"  \n{self._activity()}"
        first = "Resume" if self._paused else "Pause"
        finished = (name for name in self.painter.maps if name != state["stage"])
        for handle, name, value in (
            (self.status, "content", text),
            (self.progress, "value", 100 * state["step"] / state["total"]),
            (self.buttons, "options", (first, "Step", "Save")),
            (self.stage, "options", (RUNNING, *finished)),
        ):
            if getattr(handle, name) != value:
                setattr(handle, name, value)

    def _choice(self) -> Choice:
        stage = self.stage.value
        if stage == RUNNING:
            stage = self.state.get("stage", "")
        return Choice(stage, self.look.value, self.light.value, self.exposure.value)

    def _activity(self) -> str:
        state = self.state
        if "ended" in state:
            return "ended"
        if self._paused:
            return "paused" if not state.get("queued") else f"{state['queued']} steps to go"
        if state["step"] == state["total"]:
            return "done; what comes next is being prepared, or the results written"
        seconds = state.get("seconds_left")
        return "running" if seconds is None else f"running, {_spoken(seconds)} left in this stage"

    def _show_curve(self) -> None:
        """The loss of the stage that is looked at, on a logarithmic scale."""
        stage = self._choice().stage
        points = [point for point in self.curves.get(stage, ()) if 0 < point[1] < math.inf]
        if len(points) < 2 or self.drawn == (stage, points[-1]):
            return
        data = tuple(np.array(points, dtype=float).T)
        if self.chart is not None and self.drawn is not None and self.drawn[0] == stage:
            self.chart.data = data
        else:
            if self.chart is not None:
                self.chart.remove()
            self.chart = self.server.gui.add_uplot(
                data, ({"label": "step"}, {"label": "loss", "stroke": COLOR, "width": 2}),
                title=f"loss of {stage}", height=150, padding=(8, 16, 0, 0),
                scales={"x": {"time": False}, "y": {"distr": 3}}, legend={"show": False},
            )  # fmt: skip
        self.drawn = stage, points[-1]


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
