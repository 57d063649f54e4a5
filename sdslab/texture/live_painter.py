"""The pictures of every browser at the page of ``--live``: coarse ones at once, then fine ones."""

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.meshes.material import constant_material
from sdslab.rendering.cameras import Cameras, six_views
from sdslab.texture.live_picture import LiveScene, Look

# How a picture gets finer while nothing changes: seconds to wait for, seconds that it may take,
# supersampling.
FINENESS = ((0.0, 0.08, 1), (0.25, 0.8, 1), (1.5, 4.0, 2))
NICENESS = 5
PHONE = 576, 0.7  # pixels of width and aspect below which the panel lies over the window's bottom
FREE_ON_PHONE = 0.44
LOWEST, HIGHEST = 160, 1080  # of a picture, in pixels


@dataclass(frozen=True)
class Choice:
    """What is to be seen: see `LiveScene.picture`, and the name of a stage."""

    stage: str
    look: Look
    light: str
    exposure: float


@dataclass(frozen=True)
class Pose:
    """Where a browser looks from.

    Attributes:
        wxyz: the camera's orientation in the world; it looks along its +z, its +y is the picture's
            bottom.
        eye: its position.
        fov: angle of view from bottom to top, in radians.
        aspect: width by height of the window.
        height: of the window, in pixels.
    """

    wxyz: tuple[float, ...]
    eye: tuple[float, ...]
    fov: float
    aspect: float
    height: int

    @property
    def free(self) -> float:
        """Share of the window's height, from the top, that the panel leaves free."""
        is_phone = self.aspect < PHONE[1] and self.aspect * self.height < PHONE[0]
        return FREE_ON_PHONE if is_phone else 1.0

    def view(self, aspect: float) -> Cameras:
        """The same for our renderer, in a picture of the given aspect.

        In an upright picture the angle is that from side to side: what fits a square fits it.
        """
        import viser.transforms

        rotation = torch.from_numpy(viser.transforms.SO3(np.array(self.wxyz)).as_matrix()).T
        turned = rotation * torch.tensor([[1.0], [-1.0], [-1.0]], dtype=torch.float64)
        angle = 2 * math.atan(math.tan(self.fov / 2) / min(1.0, aspect))
        fov_deg = torch.tensor([math.degrees(angle)])
        return Cameras.turned_by(torch.tensor([self.eye]), turned[None], fov_deg, aspect)


@dataclass
class Shown:
    """What one browser shows.

    Attributes:
        camera: where it looks from.
        content: which maps, and how.
        fineness: of its picture, an index into `FINENESS`; −1 before the first.
        since: when camera or content changed.
    """

    camera: Pose | None = None
    content: object = None
    fineness: int = -1
    since: float = field(default_factory=time.monotonic)


class Painter:
    """Sends each browser pictures of what it looks at, as the background of its empty scene.

    Args:
        server: viser's.
        scene: what is shown.
        choice: which maps of it, and how.
    """

    def __init__(self, server: Any, scene: LiveScene, choice: Callable[[], Choice]) -> None:
        self.server, self.scene, self.choice = server, scene, choice
        self.renderers = {s: scene.renderer(s) for _, _, s in FINENESS}
        self.maps: dict[str, Tensor] = {}  # by stage
        self.version = 0  # of the maps
        self.shown: dict[int, Shown] = {}
        self.pixels_per_second = 1e6  # of this machine's renderer, as measured
        self.wake = threading.Event()  # set when something has changed
        self.fault: Exception | None = None

    def take(self, stage: str, maps: Tensor) -> None:
        """Shows a stage's latest maps from now on."""
        self.maps[stage] = maps
        self.version += 1
        self.wake.set()

    def work(self) -> None:
        """Paints for good; what goes wrong is left in `fault`."""
        try:
            self._warm_up()
            while True:
                if not self._paint():
                    self.wake.wait(0.05)
                elif any(shown.fineness > 0 for shown in self.shown.values()):
                    stand_back()
                self.wake.clear()
        except Exception as error:
            self.fault = error

    def _warm_up(self) -> None:
        """Renders once for nobody: the renderer compiles before anyone waits for it."""
        choice, maps = self.choice(), constant_material(8, 8)
        camera = six_views(self.renderers[1].bounding_radius)[:1]
        for renderer in self.renderers.values():
            self.scene.picture(
                renderer, camera, (LOWEST, LOWEST), maps, choice.look, choice.light, 0.0
            )

    def _paint(self) -> bool:
        """Renders the browser that needs it most once; whether there was one."""
        clients = self.server.get_clients()
        self.shown = {number: self.shown.get(number, Shown()) for number in clients}
        choice = self.choice()
        content = (choice, self.version)
        due = []
        for number, client in clients.items():
            shown, camera = self.shown[number], _pose(client.camera)
            if not camera.aspect * camera.height > 0:  # a window without an inside
                continue
            if shown.camera != camera:
                shown.fineness = -1  # something at once: the old picture is of another view
            if (shown.camera, shown.content) != (camera, content):
                shown.camera, shown.content, shown.since = camera, content, time.monotonic()
                shown.fineness = min(shown.fineness, 0)
            wait = FINENESS[shown.fineness + 1][0] if shown.fineness + 1 < len(FINENESS) else None
            if wait is not None and time.monotonic() - shown.since >= wait:
                due.append((shown.fineness, number))
        maps = self.maps.get(choice.stage, next(reversed(self.maps.values()), None))
        if not due or maps is None:
            return False
        _, number = min(due)
        self._render(clients[number], self.shown[number], maps, choice)
        return True

    def _render(self, client: Any, shown: Shown, maps: Tensor, choice: Choice) -> None:
        shown.fineness += 1
        camera = shown.camera
        assert camera is not None
        _, seconds, supersampling = FINENESS[shown.fineness]
        affordable = math.sqrt(seconds * self.pixels_per_second / camera.aspect) / supersampling
        height = round(max(LOWEST, min(affordable, camera.height, HIGHEST)))
        size = round(height * camera.free), max(1, round(height * camera.aspect))
        start = time.perf_counter()
        picture = self.scene.picture(
            self.renderers[supersampling], camera.view(size[1] / size[0]), size, maps,
            choice.look, choice.light, choice.exposure,
        )  # fmt: skip
        picture = F.pad(picture, (0, 0, 0, 0, 0, height - size[0]), value=255)
        client.scene.set_background_image(picture.numpy(), "jpeg", jpeg_quality=95)
        client.flush()
        rate = size[0] * size[1] * supersampling**2 / (time.perf_counter() - start)
        self.pixels_per_second += 0.3 * (rate - self.pixels_per_second)


def _pose(camera: Any) -> Pose:
    return Pose(
        tuple(camera.wxyz.tolist()), tuple(camera.position.tolist()), camera.fov, camera.aspect,
        camera.image_height,
    )  # fmt: skip


def stand_back() -> None:
    """Lets the run go first from now on: in this thread, or the process, as the system has it."""
    if hasattr(os, "nice"):
        os.nice(max(0, NICENESS - os.nice(0)))
