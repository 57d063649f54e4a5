"""Tiny pipelines of diffusers' own classes, and a cache that no other test has filled."""

from pathlib import Path

import pytest

from tests.tiny_pipelines import (
    save_deepfloyd_one,
    save_deepfloyd_two,
    save_stable_diffusion,
    save_upscaler,
)


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with if-1, if-2, sd and upscaler."""
    folder = tmp_path_factory.mktemp("pipelines")
    save_deepfloyd_one(folder / "if-1")
    save_deepfloyd_two(folder / "if-2")
    save_stable_diffusion(folder / "sd")
    save_upscaler(folder / "upscaler")
    return folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept between runs goes into the test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
