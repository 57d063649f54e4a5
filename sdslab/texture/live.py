"""``--live``: a page that shows the material as it forms, and pauses, steps and saves the run.

The page has a process of its own (`live_page.py`), of lower priority: whatever a browser does,
it hardly takes the run's time and never changes its result. The run looks for what was clicked
between two steps, and hands over its maps no oftener than it can afford to.
"""

import contextlib
import multiprocessing
import pickle
import signal
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

from sdslab.errors import UserError, one_line
from sdslab.meshes.export_glb import export_glb
from sdslab.optimization.optimize import Step
from sdslab.shell.process import interrupts_held
from sdslab.texture.live_page import Command, serve
from sdslab.texture.live_picture import LiveScene, covered_at, fitted

LARGEST_MAPS = 1024  # height and width of what the page is given
SHARE = 0.03  # of the run's time, at most, that handing it over takes
RELOAD_SECONDS = 5.0  # a pause ends so long after the last page has gone
LEAVING_SECONDS = 5.0  # for the last message to reach a page
CURVE_POINTS = 400  # of a stage's curve, at most


@dataclass
class Curve:
    """A stage's loss over its steps, thinned out as it grows.

    Attributes:
        points: (step, loss) of every `stride`-th step.
        stride: steps from one to the next.
    """

    points: list[tuple[int, float]]
    stride: int = 1

    def add(self, index: int, loss: float) -> None:
        """Appends a step."""
        if index % self.stride == 0:
            self.points.append((index, loss))
        if len(self.points) > CURVE_POINTS:
            self.stride *= 2
            self.points = [point for point in self.points if point[0] % self.stride == 0]


class LiveView:
    """Serves a run while the block runs; nothing that it does changes the result.

    Args:
        scene: what is shown.
        out: the run's folder, for what is saved.
        size: height and width of the maps that are saved.
        port: to listen on, 0 for any.
        say: is told a line for people, where the page is above all.
    """

    def __init__(
        self, scene: LiveScene, out: Path, size: int, port: int, say: Callable[[str], None]
    ) -> None:
        self.scene, self.out, self.size, self.port, self._say = scene, out, size, port, say
        self.paused = False
        self.url: str | None = None
        self._steps_asked = self._saves_asked = self._heard = 0
        self._wanted = self._watched = False
        self._connection: Any = None  # to the page, while it is there
        self._news: dict[str, Any] = {}
        self._curves: dict[str, Curve] = {}
        self._paces: deque[float] = deque(maxlen=10)  # seconds of the latest steps
        self._before = ("", 0.0)  # the stage and the seconds of the step before
        self._shown = ("", -1)  # the stage and the step of the maps that the page has
        self._next_maps = 0.0

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="sdslab-live-")
        scene = Path(self._folder.name) / "scene.pickle"  # as an argument it would be waited for
        scene.write_bytes(pickle.dumps((self.scene, self.out)))
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        arguments = (there, scene, self.port, RELOAD_SECONDS)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        # Ctrl-C in a terminal goes to every process there, but it is meant for the run.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        there.close()
        self._opening = threading.Thread(target=self._await_page, daemon=True)
        self._opening.start()
        return self

    def _await_page(self) -> None:
        """Hears where the page is, which may be in the middle of the first step."""
        with contextlib.suppress(EOFError, OSError):  # `_listen` will find the same
            self._hear(*self._connection.recv())

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        where = one_line(str(self.out))
        if error is None:
            text = f"**The run has finished.** Its results are in `{where}`."
        elif isinstance(error, KeyboardInterrupt):
            text = f"**The run was stopped.** What there is lies in `{where}`; the same command "
            text += "goes on from there."
        else:
            text = f"**The run ended with an error:** {error}"
        self._news |= {"ended": text}
        self._send()
        self._process.join(LEAVING_SECONDS if self._watched and self._connection else 0)
        self._process.kill()
        self._process.join()
        self._opening.join()
        self._drop_page()
        self._folder.cleanup()

    def ask(self, command: Command) -> None:
        """What the page's buttons do; "step" is one step, after which the run is paused."""
        match command:
            case "pause" | "resume":
                self.paused, self._steps_asked = command == "pause", 0
            case "step":
                self.paused = True
                self._steps_asked += 1
            case "save":
                self._saves_asked += 1
        self._tell()

    def begin(self, name: str, index: int, total: int, maps: Callable[[], Tensor]) -> None:
        """Shows what a stage begins with, before its first step is computed.

        Args:
            name: of the stage.
            index: of the step that comes first.
            total: steps of the stage.
            maps: as of `follow`.
        """
        self._listen(0)
        self._news |= {"stage": name, "step": index, "total": total, "loss": None}
        self._news |= {"seconds_left": None}
        self._tell()
        self._add_maps((name, index - 1), maps)
        if self._wanted or not self._curves:  # the first news need not be asked for
            self._send()

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
            maps: gives the material [h, h, 8] of the stage's own size, on the CPU.
            save: writes a checkpoint.

        Returns:
            Seconds that it took, and waited.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM came while the run was paused.
        """
        start = time.perf_counter()
        self._note(name, step, total)
        with interrupts_held() as raise_if_interrupted:
            while True:
                self._listen(0)
                if self._saves_asked:
                    self._saves_asked = 0
                    self._save(name, step, maps, save)
                self._answer((name, step.index), maps, last=step.index + 1 == total)
                if not self.paused or self._steps_asked:
                    break
                raise_if_interrupted()
                self._listen(0.05)
        self._steps_asked = max(0, self._steps_asked - 1)
        self._tell()
        return time.perf_counter() - start

    def _note(self, name: str, step: Step, total: int) -> None:
        stage, seconds = self._before
        if stage != name:
            self._paces.clear()
        elif step.seconds > seconds:
            self._paces.append(step.seconds - seconds)
        self._before = (name, step.seconds)
        self._curves.setdefault(name, Curve([])).add(step.index, step.loss)
        pace = statistics.median(self._paces) if self._paces else None
        self._news |= {
            "stage": name,
            "step": step.index + 1,
            "total": total,
            "loss": step.loss,
            "seconds_left": pace and pace * (total - step.index - 1),
            "curves": {stage: curve.points for stage, curve in self._curves.items()},
        }
        self._tell()

    def _tell(self) -> None:
        self._news |= {"paused": self.paused, "queued": self._steps_asked, "heard": self._heard}

    def _listen(self, seconds: float) -> None:
        """Hears what the page has said, and waits for it no longer than that."""
        try:
            if self._connection is None or self._opening.is_alive():
                time.sleep(seconds)
                return
            while self._connection.poll(seconds):
                seconds = 0
                self._hear(*self._connection.recv())
        except (EOFError, OSError):
            self._say("the live view is gone; the run goes on without")
            self._drop_page()

    def _hear(self, what: str, value: Any) -> None:
        match what:
            case "url":
                self.url = value
                self._say(f"live view: {value}")
            case "failed":
                self._say(f"the live view failed: {value}")
            case "command":
                self._heard += 1
                self.ask(value)
            case "ready":  # for the next news; the value is whether with maps
                self._wanted, self._watched = True, value

    def _drop_page(self) -> None:
        """Goes on without a page: nobody could end a pause any more."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._wanted = self._watched = self.paused = False
        self._steps_asked = 0

    def _answer(self, shown: tuple[str, int], maps: Callable[[], Tensor], last: bool) -> None:
        """Tells the page what is new, with the maps if it is time; always a stage's last ones."""
        if self._connection is None or self._shown == shown:
            due = False
        else:
            due = last or (self._wanted and self._watched and self._is_time())
        if due:
            self._add_maps(shown, maps)
        if self._wanted and self._news:
            self._send()

    def _add_maps(self, shown: tuple[str, int], maps: Callable[[], Tensor]) -> None:
        if self._connection is None:
            return
        start = time.perf_counter()
        path = Path(self._folder.name) / f"{shown[0]}-{shown[1]}.npy"
        content = maps()
        if len(content) > LARGEST_MAPS:
            content = fitted(content, covered_at(self.scene.mesh, len(content)), LARGEST_MAPS)
        np.save(path, content.half().numpy())
        self._news.setdefault("maps", []).append((shown[0], str(path)))
        self._shown = shown
        now = time.perf_counter()
        self._next_maps = now + (now - start) * (1 / SHARE - 1)

    def _is_time(self) -> bool:
        return self.paused or time.perf_counter() >= self._next_maps

    def _send(self) -> None:
        """Sends what is new. The page asks before each message, so that none waits in the pipe."""
        if self._connection is None:
            return
        try:
            self._connection.send(self._news)
        except OSError:
            self._drop_page()
        self._news, self._wanted = {}, False

    def _save(
        self, name: str, step: Step, maps: Callable[[], Tensor], save: Callable[[], object]
    ) -> None:
        where = f"{name}, step {step.index + 1}"
        try:
            save()
            material = maps()
            material = fitted(material, covered_at(self.scene.mesh, len(material)), self.size)
            export_glb(self.scene.mesh, material, self.out / "mesh.glb")
            time_of_day = datetime.now().astimezone().strftime("%H:%M:%S")
            text = f"Saved at {time_of_day} ({where}): a checkpoint and `{self.out / 'mesh.glb'}`"
        except UserError as error:
            text = f"**Not saved** ({where}): {error}"
        self._news |= {"notice": text}
