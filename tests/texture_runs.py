"""``python -m sdslab.texture`` in this process, stopped and broken where a test wants it."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sdslab.optimization.optimize import Step
from sdslab.shell.process import exit_code
from sdslab.texture import stage
from sdslab.texture.__main__ import main

SMALL = (
    "--texture-size=32", "--render-size=32", "--views=2", "--turntable=0", "--device=cpu",
    "--preview-every=0", "--picture-size=32",
)  # fmt: skip


def texture(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The exit code."""
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["texture", *map(str, arguments)])
        try:
            main()
        except SystemExit as error:
            return int(error.code or 0)
        except KeyboardInterrupt as error:
            return exit_code(error)
    return 0


@contextlib.contextmanager
def after_steps(monkeypatch: pytest.MonkeyPatch, count: int, act: Callable[[Step], None]):
    """Calls ``act`` in the ``count``-th step of a run, over all stages, before θ moves."""
    original, taken = stage.optimize_material, 0

    def watched(*values: object, **options: object):
        nonlocal taken
        for step in original(*values, **options):  # type: ignore[arg-type]
            yield step
            taken += 1
            if taken == count:
                act(step)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "optimize_material", watched)
        yield


def interrupt(_: Step) -> None:
    """What Ctrl-C does."""
    raise KeyboardInterrupt


def assert_same_maps(one: Path, two: Path) -> None:
    """Bit for bit, as the files hold them."""
    names = sorted(path.relative_to(one) for path in (one / "maps").iterdir())
    assert names == sorted(path.relative_to(two) for path in (two / "maps").iterdir())
    assert names
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def saved_steps(run: Path) -> tuple[str, int]:
    """The stage and the step of the latest checkpoint, whoever's it is."""
    newest = max(run.glob("checkpoint-*.safetensors"))
    with safetensors.safe_open(newest, "pt") as file:
        metadata = file.metadata()
    state = json.loads(metadata["state"])
    return state["stage"], state["loop"]["index"]


def saved_tensors(run: Path) -> dict[str, torch.Tensor]:
    """The tensors of the latest checkpoint."""
    return safetensors.torch.load_file(max(run.glob("checkpoint-*.safetensors")))
