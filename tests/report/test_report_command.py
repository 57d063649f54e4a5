"""``python -m sdslab.report`` as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sdslab.report.comparison import run_table
from sdslab.runs.record import write_json
from tests.report.run_folders import HOSTILE, Run, copy_run, make_study, record_of


def command_line(*arguments: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "sdslab.report", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def runs(finished: Run, tmp_path: Path) -> Path:
    """Two textures that differ in a seed and a prompt."""
    copy_run(finished, tmp_path / "runs" / "one")
    subject = {"mesh": "apple", "prompt": "a green apple", "target": None}
    changes = {"config": {"subject": subject, "rendering": {"color_mode": "srgb"}}, "seeds": [8]}
    copy_run(finished, tmp_path / "runs" / "other one", **changes)
    return tmp_path / "runs"


def test_pages_an_index_and_a_table(runs: Path, tmp_path: Path):
    study = make_study(tmp_path / "figures")
    code, out, err = command_line(runs, study, "--csv", tmp_path / "runs.csv")
    assert (code, err) == (0, "")
    index = tmp_path / "index.html"
    pages = [runs / "one" / "report.html", runs / "other one" / "report.html"]
    assert out.split("\n")[:-1] == [
        *map(str, [*pages, study / "report.html", index, tmp_path / "runs.csv"]),
    ]
    page = index.read_text(encoding="utf-8")
    for link in ("runs/one/report.html", "runs/other%20one/report.html", "figures/small/"):
        assert f'href="./{link}' in page
    assert page.count("data:image/webp") == 5  # of the textures, their photographs, too
    for path in (*pages, study / "report.html"):
        assert '<a href="../../index.html">' in path.read_text(encoding="utf-8")
    differing = page[page.index("settings that differ") :]
    for part in ("a ripe apple", "a green apple", ">seeds<", ">7<", ">8<"):
        assert part in differing
    assert "color mode" not in differing  # it is the same in both
    table = pd.read_csv(tmp_path / "runs.csv")
    assert list(table["run"]) == [str(runs / "one"), str(runs / "other one"), str(study)]
    assert table["metrics.map_psnr_db.albedo"].tolist() == [28.5] * 3
    assert table["config.subject.prompt"].tolist()[:2] == ["a ripe apple", "a green apple"]


def test_one_run_has_no_index_unless_asked_for(runs: Path, tmp_path: Path):
    code, out, _ = command_line(runs / "one")
    assert (code, out) == (0, f"{runs / 'one' / 'report.html'}\n")
    code, out, _ = command_line(runs / "one", "--out", tmp_path / "some" / "page.html")
    assert code == 0
    assert 'href="../runs/one/report.html"' in (tmp_path / "some" / "page.html").read_text()


def test_text_in_the_index_and_the_table_is_text(tmp_path: Path):
    for name in ("one", "two"):
        config = {"subject": {"prompt": f"{HOSTILE},{name}\nmore", "mesh": HOSTILE}}
        record = record_of(config=config, kind=HOSTILE, metrics={HOSTILE: 1, "psnr_db": "inf"})
        write_json(tmp_path / name / "run.json", record)
    code, _, err = command_line(tmp_path, "--csv", tmp_path / "runs.csv")
    assert code == 0, err
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<img" not in page
    assert "<script" not in page
    table = pd.read_csv(tmp_path / "runs.csv")
    assert table["config.subject.prompt"].tolist()[0] == f"{HOSTILE},one\nmore"
    assert table["metrics.psnr_db"].tolist() == [float("inf")] * 2


def test_the_table_has_a_column_for_each_key_of_any_run():
    first = record_of(metrics={"a": {"b": 1}}, seeds=[1, 2])
    second = record_of(metrics={"c": 2.5})
    table = run_table([(Path("x"), first), (Path("y"), second)])
    assert table["metrics.a.b"].tolist()[0] == 1
    assert table["metrics.c"].isna().tolist() == [True, False]
    assert table["seeds"].tolist() == ["1; 2", "7"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "must be a folder with a run.json"),
        ("{", "must be a readable JSON file"),
        ('{"schema": 99}', "must be of schema 1, got 99"),
        ("[]", 'must be a table with "schema": 1'),
    ],
    ids=["no run", "broken", "another schema", "no record"],
)
def test_mistakes_are_one_line(content: str | None, message: str, runs: Path, tmp_path: Path):
    bad = tmp_path / "bad"
    bad.mkdir()
    if content is not None:
        (bad / "run.json").write_text(content)
    code, out, err = command_line(runs / "one", bad, "--csv", tmp_path / "runs.csv")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (runs / "one" / "report.html").exists()
    assert not (tmp_path / "runs.csv").exists()


def test_no_run_at_all_is_a_mistake():
    code, _, err = command_line()
    assert code == 2
    assert "RUN must be the folder of a run, got none" in err
