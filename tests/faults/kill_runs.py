"""Kills `small_run` over and over: ``python -m tests.faults.kill_runs FOLDER WHAT=COUNT...``.

A process that has loaded torch once forks each run, which takes milliseconds instead of seconds.
Jobs ``exemplar`` and ``prompt`` kill the whole texture program instead. Prints one JSON object:
what was found, by WHAT.
"""

import contextlib
import json
import mmap
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch

from sdslab.runs.checkpoint import Checkpoints
from sdslab.shell.process import exit_code
from sdslab.texture.__main__ import main as main_of_texture
from tests.faults.small_run import EVERY, STAGES, identity, result_path, run
from tests.texture_runs import SMALL
from tests.tiny_pipelines import save_deepfloyd_one, save_deepfloyd_two

EXEMPLAR = ("sphere", "--exemplar=gravel", "--steps=15", *SMALL, "--texture-size=64")
PROMPT = (
    "sphere", "--prompt=a cow", "--light=white", "--steps=15", "--sr-steps=15", *SMALL,
)  # fmt: skip
KILLED_HERE = 9  # exit code of a child that ended itself
torch.set_num_threads(1)


def forked(work: Callable[[], None]) -> int:
    """The pid of a child that does ``work``, and exits with 0, as a program would, or with 1."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except KeyboardInterrupt as interrupt:
        os._exit(exit_code(interrupt))
    except SystemExit as end:
        os._exit(int(end.code or 0))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(pid: int) -> int:
    """A child's exit code; minus the signal's number where one killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def position(folder: Path) -> int:
    """How far the latest checkpoint is, in steps over both stages."""
    saved = Checkpoints(folder, identity()).latest()
    if saved is None:
        return 0
    return STAGES[0].steps * saved.state["stage"] + saved.state["loop"]["index"]


class Reached:
    """Memory that a child writes how far it is to."""

    def __init__(self) -> None:
        self.memory = memoryview(mmap.mmap(-1, 16)).cast("q")

    def __setitem__(self, _: slice, stage_and_step: tuple[int, int]) -> None:
        self.memory[0] = STAGES[0].steps * stage_and_step[0] + stage_and_step[1]


def at_random_moments(folder: Path, count: int, number: int) -> dict[str, Any]:
    """Sends signal ``number`` at random moments until ``count`` runs ended because of it.

    A run that SIGTERM finds before its loop began just ends, and does not count. At least two runs
    are finished: where a busy machine left time for one, another is not disturbed.
    """
    run(folder / "warm")  # loads what the children then find in memory: else most die loading it
    start = time.perf_counter()
    assert ended(forked(lambda: run(folder / "uninterrupted", pause=0.001))) == 0
    longest = (time.perf_counter() - start) / 6
    wanted = -number if number == signal.SIGKILL else 128 + number
    expected = result_path(folder / "uninterrupted").read_bytes()
    moments = random.Random(0)
    codes: dict[int, int] = {}
    finished = different = lost_most = went_back = 0
    current, before, reached = folder / "0", 0, Reached()
    hit = 0
    while hit < count or finished < 2 or not result_path(current).exists():
        if result_path(current).exists():
            current, before, reached = folder / str(finished), 0, Reached()
        pid = forked(lambda: run(current, reached, pause=0.001))  # noqa: B023
        if hit < count:
            time.sleep(moments.uniform(0.0, longest))
            os.kill(pid, number)
        code = ended(pid)
        codes[code] = codes.get(code, 0) + 1
        hit += code == wanted
        if code == 1:
            break
        now = position(current)
        went_back += now < before
        if code != 0:
            lost_most = max(lost_most, reached.memory[0] - now)
        before = now
        if result_path(current).exists():
            finished += 1
            different += result_path(current).read_bytes() != expected
    return {
        "codes": codes,
        "finished": finished,
        "different": different,
        "lost_most": lost_most,
        "went_back": went_back,
        "every": EVERY,
    }


def program(folder: Path, *arguments: str) -> None:
    """``python -m sdslab.texture``, in this process."""
    sys.argv = ["texture", *arguments, f"--out={folder}", "--checkpoint-every=0"]
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for what is found
        main_of_texture()


def maps_in(folder: Path) -> list[bytes]:
    """What a finished run left; empty for one that is not finished."""
    if not (folder / "mesh.glb").exists() or list(folder.glob("checkpoint-*")):
        return []
    return [file.read_bytes() for file in sorted((folder / "maps").iterdir())]


def program_at_random_moments(folder: Path, count: int, arguments: Sequence[str]) -> dict[str, Any]:
    """Kills the whole program until ``count`` of its processes ended because of it.

    From the start to the last output: also while it loads, and while it writes its results.
    """
    folder.mkdir()
    program(folder / "warm", *arguments)  # compiles what the children then find in memory
    start = time.perf_counter()
    assert ended(forked(lambda: program(folder / "uninterrupted", *arguments))) == 0
    longest = time.perf_counter() - start
    expected = maps_in(folder / "uninterrupted")
    moments = random.Random(1)
    codes: dict[int, int] = {}
    reached: dict[str, int] = {}
    finished = different = hit = 0
    while hit < count or maps_in(folder / str(finished - 1)) != expected:
        current = folder / str(finished)
        pid = forked(lambda: program(current, *arguments))  # noqa: B023
        if hit < count:
            time.sleep(moments.uniform(0.0, longest))
            os.kill(pid, signal.SIGKILL)
        code = ended(pid)
        codes[code] = codes.get(code, 0) + 1
        hit += code == -signal.SIGKILL
        where = stage_of(current)
        reached[where] = reached.get(where, 0) + 1
        if code == 1:
            break
        if code == 0:
            finished += 1
            different += maps_in(current) != expected
    return {"codes": codes, "finished": finished, "different": different, "reached": reached}


def stage_of(folder: Path) -> str:
    """Of the latest checkpoint, for the tally of where the program was killed."""
    files = sorted(folder.glob("checkpoint-*.safetensors"))
    if not files:
        return "finished" if maps_in(folder) else "nothing saved"
    with safetensors.safe_open(files[-1], "pt") as file:
        return json.loads(file.metadata()["state"])["stage"]


def save(folder: Path, index: int) -> None:
    theta = torch.rand(4000, generator=torch.Generator().manual_seed(index))
    Checkpoints(folder, {}).save({"theta": theta}, {"index": index})


def die_before_call(folder: Path, place: int, log: Path) -> None:
    """Saves, and ends the process before the ``place``-th call that changes the disk."""
    made = 0

    def count(name: str) -> None:
        nonlocal made
        made += 1
        if made == place:
            log.write_text(name)
            os._exit(KILLED_HERE)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in ("os.rename", "os.remove", "os.chmod", "os.truncate"):
            count(event)

    real_fsync = os.fsync

    def fsync(handle: int) -> None:
        count("fsync")
        real_fsync(handle)

    os.fsync = fsync
    sys.addaudithook(hook)
    save(folder, 3)


def die_after_bytes(folder: Path, size: int) -> None:
    """Saves, and is killed by the kernel once a file is ``size`` bytes long."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    save(folder, 3)


def check_whole(folder: Path) -> tuple[int, bool]:
    """The index of the latest checkpoint, after another save, and whether all was as it must be."""
    saved = Checkpoints(folder, {}).latest()
    assert saved is not None
    index = saved.state["index"]
    right = torch.rand(4000, generator=torch.Generator().manual_seed(index))
    good = saved.tensors["theta"].equal(right) and saved.note is None and index in (2, 3)
    save(folder, 4)
    after = Checkpoints(folder, {}).latest()
    files = [file.name for file in folder.iterdir()]
    good &= after is not None and after.state == {"index": 4}
    good &= len(files) == 2 and not any(name.startswith(".") for name in files)
    return index, good


def during_a_checkpoint(folder: Path, count: int) -> dict[str, Any]:
    """Kills a save before each of its calls, and at ``count`` lengths of its file."""
    calls, bad = [], []
    log = folder / "log"
    while True:
        current = folder / f"call{len(calls)}"
        save(current, 1)
        save(current, 2)
        code = ended(forked(lambda: die_before_call(current, len(calls) + 1, log)))  # noqa: B023
        index, good = check_whole(current)
        if code != KILLED_HERE:
            bad += [] if code == 0 and index == 3 and good else [f"unkilled {code} {index}"]
            break
        calls.append([log.read_text(), index])
        if not good:
            bad.append(calls[-1])
    size = max(file.stat().st_size for file in current.iterdir())
    for number in range(count):
        current = folder / f"size{number}"
        save(current, 1)
        save(current, 2)
        code = ended(forked(lambda: die_after_bytes(current, size * number // count)))  # noqa: B023
        index, good = check_whole(current)
        if (code, index, good) != (-signal.SIGXFSZ, 2, True):
            bad.append([number, code, index, good])
    return {"calls": calls, "bad": bad}


def main() -> None:
    found = {}
    for job in sys.argv[2:]:
        what, count = job.split("=")
        folder = Path(sys.argv[1]) / what
        if what == "checkpoint":
            found[what] = during_a_checkpoint(folder, int(count))
        elif what == "exemplar":
            found[what] = program_at_random_moments(folder, int(count), EXEMPLAR)
        elif what == "prompt":
            one = save_deepfloyd_one(folder.parent / "if-1")
            two = save_deepfloyd_two(folder.parent / "if-2")
            models = (f"--model={one}", f"--sr-model={two}")
            found[what] = program_at_random_moments(folder, int(count), (*PROMPT, *models))
        else:
            found[what] = at_random_moments(folder, int(count), getattr(signal, what))
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
