"""Names of files that are no text in any encoding, or not in the locale's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdslab.errors import one_line, readable
from sdslab.files.atomic_write import write_text
from sdslab.runs.record import run_record, write_json
from sdslab.runs.schema import read_run
from sdslab.shell.command_line import parse
from sdslab.texture.argument_checks import default_out
from sdslab.texture.arguments import Arguments

NAME = os.fsdecode(b"K\xf6rper.obj")


def test_such_names_are_shown_with_escapes_and_written_as_utf8(tmp_path: Path):
    assert readable(NAME) == r"K\xf6rper.obj"
    assert readable(os.fsdecode("Körper".encode())) == "Körper"
    assert one_line(f"{NAME}\n\x1b[31m") == r"K\xf6rper.obj??[31m"
    write_text(tmp_path / NAME, f"<p>{NAME}\ud800")
    assert (tmp_path / NAME).read_bytes() == rb"<p>K\xf6rper.obj\ud800"


@pytest.mark.parametrize("name", [NAME, "写真.jpg", "-a\n'\"\\\x1b[31m.obj", "a b.obj"])
def test_a_record_gives_a_name_and_its_command_back(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", name])
    config = {"mesh": name}
    record = run_record(config, torch.device("cpu"), program="texture", kind="none")
    write_json(tmp_path / "run.json", record)
    json.loads((tmp_path / "run.json").read_bytes().decode("utf-8"))
    again = read_run(tmp_path / "run.json")
    assert again["config"] == config
    word = again["command"].split(" ", 3)[3]
    printed = subprocess.run(
        ["bash", "-c", f"printf %s {word}"], capture_output=True, check=True, env={}
    )
    assert printed.stdout == os.fsencode(name)


def test_two_long_names_make_a_folder_that_can_be_made(tmp_path: Path):
    names = (f"{'写' * 83}.obj", f"--exemplar={'y' * 250}.jpg")
    (tmp_path / default_out(parse(Arguments, "texture", names))).mkdir(parents=True)


def test_a_program_in_an_ascii_locale_takes_and_tells_names_as_they_are(tmp_path: Path):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    record = run_record({}, torch.device("cpu"), program="study", kind="exemplar")
    names = ["Körper".encode(), b"K\xf6rper"]
    for name in names:
        folder = tmp_path / os.fsdecode(name)
        write_json(folder / "run.json", record)
    done = subprocess.run(
        [sys.executable, "-m", "sdslab.report", *names],
        capture_output=True, check=False, cwd=tmp_path, env={**os.environ, **locale},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    pages = "Körper/report.html\nK\\xf6rper/report.html\n".encode()
    assert done.stdout.startswith(pages)
    index = (tmp_path / "index.html").read_bytes().decode("utf-8")
    assert 'href="./K%C3%B6rper/report.html"' in index
    assert 'href="./K%F6rper/report.html"' in index
