"""Run folders as programs leave them, made without optimising anything; and a browser."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdslab.meshes.export_glb import export_glb
from sdslab.meshes.material import constant_material, save_maps
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.rendering.cameras import six_views
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.environment_map import load_environment, resize, write_hdr
from sdslab.rendering.lighting import Environment
from sdslab.rendering.preview import Previewer, contact_sheet
from sdslab.rendering.renderer import Renderer
from sdslab.runs.record import run_record, write_json
from sdslab.runs.table import Page, Table

HERE = Path(__file__).parent
NODE_MODULES = HERE.parent / "node_modules"
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}"


def smooth_maps(seed: int, size: int = 64) -> torch.Tensor:
    """Colours neither black nor white; roughness and metal vary, normals tilt a little."""
    noise = torch.rand(1, 8, 6, 6, generator=torch.Generator().manual_seed(seed))
    noise = torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic").clamp(0, 1)
    maps = 0.2 + 0.5 * noise[0].movedim(0, -1)
    normal = torch.nn.functional.normalize(
        torch.cat((0.3 * (maps[..., 5:7] - 0.45), torch.ones(size, size, 1)), -1), dim=-1
    )
    maps[..., 5:] = (normal + 1) / 2
    return maps.contiguous()


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder, and how our renderer sees it."""

    folder: Path
    previewer: Previewer
    maps: dict[str, torch.Tensor]

    def front(self, name: str, size: int) -> np.ndarray:
        """[size, size, 3] in [0, 1]."""
        previewer = dataclasses.replace(self.previewer, size=size)
        cameras = six_views(previewer.renderer.bounding_radius)[0:1]
        return previewer.picture(cameras, self.maps[name])[0].movedim(0, -1).numpy()


def record_of(**changes: Any) -> dict[str, Any]:
    record = run_record(
        {
            "subject": {"mesh": "apple", "prompt": "a ripe apple", "target": None},
            "rendering": {"color_mode": "srgb"},
        },
        torch.device("cpu"),
        program="texture",
        kind="deepfloyd",
        seeds=(7,),
    )
    record |= {
        "outcome": "finished",
        "ended": record["started"],
        "metrics": {"view_psnr_db": 31.25, "map_psnr_db": {"albedo": 28.5}},
        "seconds": {"loading": 1.0, "stage1": 10.0, "stage2": 20.0, "total": 33.0},
        "peak_memory_mb": {"process": 1234.5},
        "details": {"materials": ["stage2", "stage1", "original"]},
    }
    return record | changes


def make_run(folder: Path, light: str | None = "studio") -> Run:
    mesh = PROCEDURAL_MESHES["apple"]()
    maps = {"stage2": smooth_maps(0), "stage1": smooth_maps(1), "original": constant_material(4, 4)}
    for name, material in maps.items():
        place = folder if name == "stage2" else folder / name
        export_glb(mesh, material, place / "mesh.glb")
    save_maps(maps["stage2"], folder / "maps")
    environment = None
    if light is not None:
        write_hdr(resize(load_environment(light), 256).numpy(), folder / "light.hdr")
        environment = Environment.of(light)
    previewer = Previewer(Renderer(mesh, CpuBackend(), supersampling=2), environment, size=128)
    run = Run(folder, previewer, maps)
    front = Image.fromarray((255 * run.front("stage2", 128)).round().astype(np.uint8))
    front.save(folder / "front.png")
    (folder / "inputs").mkdir()
    Image.new("RGB", (40, 30), "olive").save(folder / "inputs" / "photograph-1.png")
    contact_sheet(
        [previewer.views("stage2", maps["stage2"])],
        maps["stage2"],
        folder / "contact_sheet.png",
    )
    lines = [f"stage{1 + i // 20},{i % 20},{100 / (i + 1)},{1 + i % 3},0,0.5" for i in range(40)]
    (folder / "metrics.csv").write_text(
        "stage,step,loss,gradient_norm,nonfinite,seconds\n" + "\n".join(lines) + "\n"
    )
    write_json(folder / "run.json", record_of())
    return run


def copy_run(run: Run, folder: Path, **changes: Any) -> Path:
    """The same files elsewhere, with another record."""
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("report.html"))
    write_json(folder / "run.json", record_of(**changes))
    return folder


def make_study(folder: Path, **changes: Any) -> Path:
    """OUT/small, with OUT/small.*; returns the former."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.csv").write_text("theta,psnr_db\n")
    Image.new("RGB", (600, 100), "navy").save(folder / "small.png")
    Image.new("RGB", (400, 300), "teal").save(folder / "small.convergence.png")
    table = Table(["θ", "PSNR, dB"], [["pixels", "147.26 ± 0.18"], [HOSTILE, "−1"]])
    page = Page("Small", [table, "Near x* it rounds.  "])
    (folder / "small.md").write_text(page.markdown(), encoding="utf-8")
    write_json(folder / "small.json", {"page": page.content()})
    config = {"name": "small", "title": "A small study", "settings": {"size": 64}, "cells": []}
    record = record_of(program="study", kind="reconstruction", config=config, details={}, **changes)
    write_json(folder / "small" / "run.json", record)
    return folder / "small"


def browse(page: Path, steps: list[list[Any]], folder: Path, **view: Any) -> dict[str, Any]:
    """Runs ``browse.mjs``; skips the test where there is no browser."""
    node = shutil.which("node")
    if node is None or shutil.which("chromium") is None:
        pytest.skip("needs node and chromium")
    if not (NODE_MODULES / "playwright-core").is_dir():
        pytest.skip("needs playwright-core: npm ci --prefix tests")
    settings = {"width": 800, "height": 640, "steps": steps, **view}
    (folder / "steps.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [node, HERE / "browse.mjs", page, folder / "steps.json", folder],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
