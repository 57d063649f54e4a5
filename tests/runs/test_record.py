import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sdslab
from sdslab.errors import UserError
from sdslab.runs.record import device_name, recorded, run_record, write_json
from sdslab.runs.schema import FIELDS, OUTCOMES, check_run, origin_of, read_run

CPU = torch.device("cpu")
TABLE = Path(__file__).parents[2] / "docs" / "run_record.md"


def a_record() -> dict[str, Any]:
    return run_record({"size": 64}, CPU, program="study", kind="reconstruction", seeds=(3, 4))


def test_the_record_says_what_ran_from_which_code_on_what():
    record = a_record()
    assert record["config"] == {"size": 64}
    assert record["seeds"] == [3, 4]
    assert record["sdslab"] == sdslab.__version__
    assert record["packages"]["torch"] == torch.__version__
    assert record["device"] == device_name(CPU)
    assert record["device"].endswith("(CPU)")
    assert record["threads"] == torch.get_num_threads()
    check_run(json.loads(json.dumps(record, allow_nan=False)), "it")


def test_it_is_there_from_the_start_and_complete_at_the_end(tmp_path: Path):
    path, record = tmp_path / "run.json", a_record()
    with recorded(path, record, CPU):
        early = read_run(path)
        record["metrics"]["psnr_db"] = 30.0
        record["seconds"]["stage"] = 1.0
    assert (early["outcome"], early["ended"], early["metrics"]) == ("running", None, {})
    late = read_run(path)
    assert (late["outcome"], late["error"], late["metrics"]) == (
        "finished", None, {"psnr_db": 30.0},
    )  # fmt: skip
    assert late["ended"] >= late["started"]
    # A stage of one second in a process of less: another one has worked at it.
    assert (late["seconds"]["stage"], late["seconds"]["total"]) == (1.0, 1.0)
    assert late["seconds"]["last_process"] < 1
    assert late["peak_memory_mb"]["process"] > 10
    assert origin_of(late) == origin_of(early)


@pytest.mark.parametrize(
    ("error", "outcome", "line"),
    [
        (KeyboardInterrupt(), "interrupted", None),
        (UserError("steps must be 1, got 2\nmore"), "failed", "steps must be 1, got 2"),
        (ZeroDivisionError(), "failed", "ZeroDivisionError"),
        (ValueError("\x1b[31mred"), "failed", "?[31mred"),
    ],
    ids=["Ctrl-C", "user error", "no message", "control characters"],
)
def test_how_a_run_ended_is_told(
    error: BaseException, outcome: str, line: str | None, tmp_path: Path
):
    with pytest.raises(type(error)), recorded(tmp_path / "run.json", a_record(), CPU):
        raise error
    record = read_run(tmp_path / "run.json")
    assert (record["outcome"], record["error"]) == (outcome, line)


def test_json_is_strict(tmp_path: Path):
    write_json(tmp_path / "run.json", {"θ": [1, None]})
    assert json.loads((tmp_path / "run.json").read_text("utf-8")) == {"θ": [1, None]}
    write_json(tmp_path / "run.json", {"x": float("nan"), "y": [float("inf"), -float("inf")]})
    text = (tmp_path / "run.json").read_text("utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"x": None, "y": ["inf", "-inf"]}


@pytest.mark.parametrize("name", FIELDS)
def test_every_key_is_needed_and_of_its_kind(name: str):
    record = a_record()
    check_run({**record, "another": 1}, "it")
    missing = copy.deepcopy(record)
    del missing[name]
    with pytest.raises(UserError, match=name):
        check_run(missing, "it")
    with pytest.raises(UserError, match=name):
        check_run({**record, name: 1.5}, "it")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a readable JSON file"),
        (b"{", "must be a readable JSON file"),
        (b"\xff\xfe", "must be a readable JSON file"),
        (b"[" * 100_000, "must be a readable JSON file"),
        (b'["\\ud800"]', "surrogates not allowed"),
        (b"[]", 'must be a table with "schema": 1'),
        (b"{}", 'must be a table with "schema": 1'),
        (b'{"schema": 2}', "must be of schema 1, got 2"),
        (b'{"schema": true}', "must be of schema 1, got True"),
    ],
    ids=[
        "empty",
        "cut off",
        "no text",
        "deep",
        "half a character",
        "list",
        "no schema",
        "newer",
        "no number",
    ],
)
def test_what_is_no_record_is_refused_in_one_line(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_run(tmp_path / "run.json")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_outcome_and_a_missing_file_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=f"must be one of {', '.join(OUTCOMES)}"):
        check_run({**a_record(), "outcome": "won"}, "it")
    with pytest.raises(UserError, match=r"must have a run\.json, got none"):
        read_run(tmp_path / "run.json")


def test_the_documentation_names_every_key():
    text = TABLE.read_text(encoding="utf-8")
    assert [name for name in FIELDS if f"`{name}`" not in text] == []
