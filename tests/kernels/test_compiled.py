"""Compiled kernels where nothing can be kept: numba itself would end in a traceback."""

import os
from pathlib import Path
from typing import Any

import numba
import numba.core.config
import pytest

from sdslab.kernels import compiled


@pytest.fixture
def unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As in a read-only install with no home: numba finds a place by NUMBA_CACHE_DIR alone."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", "")
    place = compiled._cache_folder

    def found() -> str | None:
        config: Any = numba.core.config
        return place() if config.CACHE_DIR else None

    monkeypatch.setattr(compiled, "_cache_folder", found)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_temporary_cache_takes_its_place(unwritable: Path):
    folder, note = compiled._with_fallback()
    assert folder is not None
    assert Path(folder).is_relative_to(unwritable)
    assert Path(os.environ["NUMBA_CACHE_DIR"]).stat().st_mode & 0o777 == 0o700
    assert "set NUMBA_CACHE_DIR to a folder to keep them" in note


def test_without_any_folder_kernels_compile_uncached(
    unwritable: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(**_: object) -> str:
        raise FileNotFoundError(f"no usable temporary folder, {unwritable} neither")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    folder, note = compiled._with_fallback()
    assert folder is None
    assert "not even a temporary folder" in note
    monkeypatch.setattr(compiled, "CACHE", folder)
    assert compiled.njit(cache=True)(lambda x: x + 1)(2) == 3
