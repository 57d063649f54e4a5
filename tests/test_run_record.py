import json
from pathlib import Path

import pytest
import torch

import sdslab
from sdslab.run_record import device_name, run_record, write_json


def test_the_record_says_what_ran_from_which_code_on_what():
    record = run_record({"size": 64}, torch.device("cpu"))
    assert record["config"] == {"size": 64}
    assert record["sdslab"] == sdslab.__version__
    assert record["packages"]["torch"] == torch.__version__
    assert record["device"] == device_name(torch.device("cpu"))
    assert record["device"].endswith("(CPU)")
    assert record["threads"] == torch.get_num_threads()
    json.dumps(record, allow_nan=False)


def test_json_is_strict(tmp_path: Path):
    write_json(tmp_path / "run.json", {"θ": [1, None]})
    assert json.loads((tmp_path / "run.json").read_text("utf-8")) == {"θ": [1, None]}
    write_json(tmp_path / "run.json", {"x": float("nan"), "y": [float("inf"), -float("inf")]})
    text = (tmp_path / "run.json").read_text("utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"x": None, "y": ["inf", "-inf"]}
