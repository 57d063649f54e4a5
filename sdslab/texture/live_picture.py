"""What the page of ``--live`` shows: any view of maps of any size, as ``front.png`` shows them.

Every browser has pictures of its own: coarse ones at once, then fine ones.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.meshes.material import MAPS, constant_material, dilate_seams, renormalized, resize_maps
from sdslab.meshes.mesh import Mesh
from sdslab.pictures.color import ColorMode
from sdslab.rendering.backends import make_backend
from sdslab.rendering.cameras import Cameras, six_views
from sdslab.rendering.lighting import Environment, Lighting
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.scene import sample_background
from sdslab.rendering.texels import covered_texels

Look = Literal["result", "albedo", "roughness", "metallic", "normal"]
LOOKS: tuple[Look, ...] = ("result", "albedo", "roughness", "metallic", "normal")
CPU = torch.device("cpu")


def fitted(maps: Tensor, covered: Tensor, size: int) -> Tensor:
    """Maps of any size at another one, with every texel outside the charts filled.

    The stages of a run have maps of different sizes; this is where they become those of one.

    Args:
        maps: [h, h, 8] on the CPU.
        covered: [h, h] bool, the texels of these maps that a face covers.
        size: height and width of the result.

    Returns:
        [size, size, 8], to which texels outside the charts have contributed nothing.
    """
    shrink = len(maps) // size
    if shrink <= 1:
        return resize_maps(dilate_seams(maps, covered), size)
    weight = covered[None, None].float()
    share = F.avg_pool2d(weight, shrink)
    mean = F.avg_pool2d(maps.movedim(-1, 0)[None] * weight, shrink) / share.clamp_min(1e-6)
    return dilate_seams(renormalized(mean[0].movedim(0, -1)), share[0, 0] > 0)


def covered_at(mesh: Mesh, size: int) -> Tensor:
    """[size, size] bool, the texels of maps of that size that a face covers."""
    return covered_texels(mesh, (size, size), make_backend("cpu", CPU))


@dataclass(frozen=True, eq=False)
class LiveScene:
    """What is shown, but for its material.

    Attributes:
        mesh: what is textured.
        lights: of the run on the CPU, by name; the first is ``front.png``'s. None: unlit.
        color_mode: of the renderer.
    """

    mesh: Mesh
    lights: Mapping[str, Environment]
    color_mode: ColorMode

    def renderer(self, supersampling: int) -> Renderer:
        """Renderer on the CPU, whatever the run computes on."""
        return Renderer(self.mesh, make_backend("cpu", CPU), CPU, self.color_mode, supersampling)

    @torch.no_grad()
    def picture(
        self,
        renderer: Renderer,
        camera: Cameras,
        size: tuple[int, int],
        maps: Tensor,
        look: Look,
        light: str,
        exposure: float,
    ) -> Tensor:
        """Renders one view on white.

        Args:
            renderer: from `renderer`.
            camera: one view.
            size: (height, width) of the picture.
            maps: [h, w, 8] as `material.py` describes.
            look: "result" is shaded; a single map is shown as its file holds it.
            light: a name of `lights`; ignored where there are none.
            exposure: in stops; 0 is ``front.png``'s.

        Returns:
            [height, width, 3] uint8, sRGB-encoded.
        """
        surface = renderer.see(camera, size)
        white = sample_background("white", 0, 0, 1, size)
        if look == "result":
            lighting = None
            if self.lights:
                fixed = Lighting.fixed(self.lights[light], 1)
                lighting = replace(fixed, intensity=fixed.intensity * 2**exposure)
            picture = renderer.picture(surface, maps, lighting, white)
        else:
            texels = renderer.look_up(surface, maps)[:, MAPS[look]]
            picture = surface.fill(texels.expand(-1, 3), white)
        return (picture[0].clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1)


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
