"""Whole texture runs in which something breaks: what is said, and that they go on afterwards."""

import contextlib
import math
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import TaskID
from torch import Tensor

from sdslab.optimization.material_optimization import MaterialProblem
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.shell.progress_lines import ProgressLines
from sdslab.texture import inputs, runner, stage, workspace
from tests.texture_runs import (
    SMALL,
    after_steps,
    assert_same_maps,
    interrupt,
    saved_steps,
    saved_tensors,
    texture,
)
from tests.tiny_pipelines import save_deepfloyd_one

RUN = ("torus", "--target", "coffee", "--unlit", "--steps=16", *SMALL)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def broken(
    monkeypatch: pytest.MonkeyPatch, first: int, last: int, damage: Callable[[torch.Tensor], object]
) -> None:
    """Lets ``damage`` change the gradient that the guide gives in some steps."""
    original = stage.optimize_material

    def optimized(problem: MaterialProblem, *others: Any, **options: Any):
        def damaged(z: torch.Tensor, index: int, *sight: Any):
            result = problem.guide(z, index, *sight)
            if first <= index <= last:
                damage(result.gradient)
                count = (~result.gradient.isfinite()).flatten(1).sum(1)
                result = result._replace(nonfinite=count)
            return result

        return original(replace(problem, guide=damaged), *others, **options)

    monkeypatch.setattr(stage, "optimize_material", optimized)


def poisoned(value: float) -> Callable[[torch.Tensor], None]:
    def poison(gradient: torch.Tensor) -> None:
        gradient[0, 0, 3] = value

    return poison


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_few_steps_of_a_broken_model_are_skipped(value: float, monkeypatch):
    with monkeypatch.context() as patch:
        broken(patch, 3, 6, poisoned(value))
        assert texture(patch, *RUN, "--out=run") == 0
    lines = Path("run/metrics.csv").read_text().splitlines()[1:]
    assert len(lines) == 16
    assert [int(line.split(",")[4]) > 0 for line in lines] == [3 <= k <= 6 for k in range(16)]


def test_a_model_that_stays_broken_ends_in_one_line_and_is_saved(
    monkeypatch, capsys: pytest.CaptureFixture[str]
):
    with monkeypatch.context() as patch:
        broken(patch, 4, 99, poisoned(float("nan")))
        assert texture(patch, *RUN, "--out=run") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: recovery: the model's output must be finite, got NaN or inf")
    assert "in 10 steps in a row" in error
    assert "the material before step 13 is saved" in error
    assert saved_steps(Path("run")) == ("recovery", 13)
    assert all(tensor.isfinite().all() for tensor in saved_tensors(Path("run")).values())
    # Once the model works, the run goes on; the nine steps that were skipped stay so.
    assert texture(monkeypatch, *RUN, "--out=run") == 0


def test_a_gradient_that_overflows_in_the_renderer_ends_in_one_line(
    monkeypatch, capsys: pytest.CaptureFixture[str]
):
    with monkeypatch.context() as patch:
        broken(patch, 5, 99, lambda gradient: gradient.fill_(3e38))
        assert texture(patch, *RUN, "--out=run") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the gradient of θ must be finite, got a norm of inf at step 5" in error
    assert saved_steps(Path("run")) == ("recovery", 5)


@contextlib.contextmanager
def material_set_to(value: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a fault of memory could do to the albedo, in the sixth step."""
    thetas: list[TexelGrid] = []
    theta_of = workspace.Workspace.theta

    def noted(space: workspace.Workspace, initial: torch.Tensor, *scale: object) -> TexelGrid:
        thetas.append(theta_of(space, initial, *scale))  # type: ignore[arg-type]
        return thetas[-1]

    def flip(_: object) -> None:
        thetas[-1].texels.data[..., 0] = value

    with monkeypatch.context() as patch, after_steps(patch, 6, flip):
        patch.setattr(workspace.Workspace, "theta", noted)
        yield


def test_a_broken_material_is_not_saved_over_a_whole_one(
    monkeypatch, capsys: pytest.CaptureFixture[str]
):
    """The run goes back to the last checkpoint."""
    assert texture(monkeypatch, *RUN, "--out=whole") == 0
    with material_set_to(float("nan"), monkeypatch):
        assert texture(monkeypatch, *RUN, "--out=run", "--checkpoint-every=0") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: recovery: z = encode(render(g(θ))) must be finite")
    assert "is saved" not in error
    assert all(tensor.isfinite().all() for tensor in saved_tensors(Path("run")).values())
    assert texture(monkeypatch, *RUN, "--out=run") == 0
    assert_same_maps(Path("run"), Path("whole"))


def test_an_infinite_material_is_brought_back_into_range(monkeypatch):
    with material_set_to(float("inf"), monkeypatch):
        assert texture(monkeypatch, *RUN, "--out=run") == 0
    lines = Path("run/metrics.csv").read_text().splitlines()[1:]
    assert all(math.isfinite(float(line.split(",")[2])) for line in lines)


@pytest.mark.parametrize(
    ("kind", "remedy"), [("target", "smaller --texture-size"), ("prompt", "--low-memory")]
)
def test_out_of_memory_names_what_helps_and_saves(
    kind: str, remedy: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    command = RUN
    if kind == "prompt":
        model = str(save_deepfloyd_one(tmp_path / "if-1"))
        command = ("torus", "--prompt=a cow", "--model", model, "--sr-model=none", *RUN[3:])

    def hungry(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with after_steps(monkeypatch, 6, hungry):
        assert texture(monkeypatch, *command, "--out=run") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the GPU's memory is not enough for 2.00 GiB more" in error
    assert remedy in error
    assert "step 5 of 16 is saved: the same command goes on from there" in error
    assert saved_steps(Path("run"))[1] == 5
    assert texture(monkeypatch, *command, "--out=run") == 0


def test_out_of_memory_while_loading_is_one_line_too(
    monkeypatch, capsys: pytest.CaptureFixture[str]
):
    def hungry(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(inputs, "load_mesh", hungry)
    assert texture(monkeypatch, *RUN, "--out=run") == 2
    assert "the computer's memory is not enough; free some" in capsys.readouterr().err
    assert not Path("run").exists()


def kill_now(number: int) -> None:
    """A signal that is heard before the next line, as one from elsewhere would be."""
    os.kill(os.getpid(), number)
    threading.Event().wait(0.2)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("place", ["mesh", "model"])
def test_a_run_that_is_stopped_while_it_loads_leaves_nothing(
    place: str, number: int, code: int, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    owner, name = {"mesh": (inputs, "load_mesh"), "model": (workspace, "load_target")}[place]
    original = getattr(owner, name)

    def slow(*values: object, **options: object) -> object:
        kill_now(number)
        return original(*values, **options)

    monkeypatch.setattr(owner, name, slow)
    assert texture(monkeypatch, *RUN, "--out=run") == code
    assert "interrupted: " in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("output", "number", "code"),
    [
        ("mesh.glb", signal.SIGTERM, 143),
        ("obj", signal.SIGINT, 130),
        ("contact_sheet.png", signal.SIGTERM, 143),
        ("turntable", signal.SIGINT, 130),
    ],
)
def test_outputs_are_written_again_where_writing_was_stopped(
    output: str, number: int, code: int, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    command = (*RUN, "--steps=2", "--turntable=2", "--out=run")
    original = runner.write_outputs

    def stopped(opened: workspace.Workspace, materials: dict[str, Tensor], progress: ProgressLines):
        update = progress.update

        def note(*task: TaskID, note: str, **values: int) -> None:
            update(*task, note=note, **values)  # type: ignore[arg-type]
            if note == output:
                kill_now(number)

        monkeypatch.setattr(progress, "update", note)
        return original(opened, materials, progress)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_outputs", stopped)
        assert texture(patch, *command) == code
    error = capsys.readouterr().err
    assert "interrupted: the same command, or --resume run, goes on from there" in error
    assert not list(Path("run").rglob(".*"))  # nothing half-written
    assert texture(monkeypatch, *command) == 0
    assert {"mesh.glb", "obj", "maps", "contact_sheet.png"} <= {
        p.name for p in Path("run").iterdir()
    }
    assert list(Path("run").glob("turntable.*"))
    assert not list(Path("run").glob("checkpoint-*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("when", ["checkpoint", "outputs"])
def test_a_disk_that_fills_up_loses_nothing(
    when: str, small_disk: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    command = (*RUN, "--out", small_disk / "run")
    assert texture(monkeypatch, *RUN, "--out=whole") == 0
    with after_steps(monkeypatch, 4, interrupt):
        assert texture(monkeypatch, *command) == 130
    filler = small_disk / "filler"

    def fill(_: object = None) -> None:
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(bytes(2**23))

    capsys.readouterr()
    if when == "checkpoint":
        with after_steps(monkeypatch, 3, fill):
            assert texture(monkeypatch, *command, "--checkpoint-every=0") == 2
    else:
        original = runner.write_outputs

        def full(*values: object, **options: object):
            fill()
            return original(*values, **options)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(runner, "write_outputs", full)
            assert texture(patch, *command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in error
    filler.unlink()
    assert saved_steps(small_disk / "run")[1] >= 3
    assert texture(monkeypatch, *command) == 0
    assert_same_maps(small_disk / "run", Path("whole"))


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(
    small_disk: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert texture(monkeypatch, *RUN, "--out", small_disk / "run") == 2
    error = capsys.readouterr().err
    assert "--out must be a folder that can be written" in error
    assert len(error.splitlines()) == 1
