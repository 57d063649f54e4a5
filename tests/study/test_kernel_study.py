"""The kernel study: its file, its rows, and that a wrong result has no speed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sdslab.errors import UserError
from sdslab.study import kernel_operations
from sdslab.study.__main__ import Overrides, Selection, run
from sdslab.study.kernel_operations import OPERATIONS, KernelCase, Problem, by_distances
from sdslab.study.kernels import KernelSettings, measure, peaks_mb
from sdslab.study.measuring import quantiles_ms, spread
from sdslab.study.study_file import load_study

CPU = torch.device("cpu")
SETTINGS = KernelSettings(
    cpu_sizes=((2, 16),),
    cuda_sizes=((2, 16),),
    cpu_repeats=2,
    copy_mb=1,
    matmul_size=16,
    compile=False,
    memory=False,
)
STUDY = """
title = "A small kernel study"
kind = "kernels"
[settings]
cpu_repeats = 2
copy_mb = 1
matmul_size = 16
compile = false
cpu_sizes = [[1, 8], [2, 16]]
cuda_sizes = [[1, 8]]
[[cases]]
name = "perturb"
label = "x_t"
operation = "perturb"
[[cases]]
name = "sds"
label = "gradient"
operation = "sds_gradient"
guided = true
dtype = "float16"
[presets.quick]
cpu_sizes = [[1, 8]]
[presets.quick.cases.sds]
guided = false
"""
CASES = {
    "perturb by key": KernelCase("x", "x", "perturb"),
    "perturb by tensor": KernelCase("x", "x", "perturb", noise="tensor"),
    "perturb bf16": KernelCase("x", "x", "perturb", dtype="bfloat16"),
    "sds": KernelCase("x", "x", "sds_gradient"),
    "sds guided": KernelCase("x", "x", "sds_gradient", guided=True, dtype="float16"),
    "sds by tensor": KernelCase("x", "x", "sds_gradient", noise="tensor"),
    "degenerate": KernelCase("x", "x", "degenerate_sds_gradient"),
    "sr castex": KernelCase("x", "x", "sr_condition"),
    "sr pipeline": KernelCase("x", "x", "sr_condition", mode="pipeline", noise="tensor"),
    "posterior": KernelCase("x", "x", "patch_posterior", channels=31, keys=300),
}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(STUDY)
    return path


def test_every_row_is_written(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    run(Selection(str(study)), Overrides(out="results", device="cpu"))
    out = tmp_path / "results"
    assert {path.name for path in out.iterdir()} == {
        "small", "small.csv", "small.json", "small.md", "small.png",
    }  # fmt: skip
    table: Any = pd.read_csv(out / "small.csv")
    assert list(table["row"]) == ["perturb", "perturb", "sds", "sds"]
    assert table["accepted"].all()
    gb_per_s = table["bytes"] / table["ours_ms_q50"] / 1e6
    pd.testing.assert_series_equal(table["gb_per_s"], gb_per_s, rtol=1e-4, check_names=False)
    share = table["gb_per_s"] / table["copy_gb_per_s"]
    pd.testing.assert_series_equal(table["share_of_copy"], share, rtol=1e-4, check_names=False)
    ratio = table["eager_ms_q50"] / table["ours_ms_q50"]
    pd.testing.assert_series_equal(table["eager_ratio"], ratio, rtol=1e-4, check_names=False)
    assert table["torch"].eq(torch.__version__).all()
    assert all(isinstance(device, str) for device in table["device"])
    assert len(json.loads((out / "small.json").read_text())["rows"]) == 4
    assert (out / "small.md").read_text().strip() in capsys.readouterr().out


@pytest.mark.parametrize("name", CASES)
def test_every_operation_equals_its_equation(name: str):
    row = measure(CASES[name], 2, 16, SETTINGS, CPU)
    assert row["accepted"], f"{row['disagreement']} exceeds {row['budget']}"
    assert row["budget"] < 0.05
    assert min(row["ours_ms_q50"], row["eager_ms_q50"]) > 0


def test_all_ways_to_write_the_posterior_agree():
    problem = OPERATIONS["patch_posterior"](CASES["posterior"], 2, 16, CPU)
    arguments = (argument.double() for argument in problem.arguments)
    (truth,) = by_distances(*arguments)
    assert list(problem.contenders) == ["ours", "eager", "sdpa", "cdist"]
    for call in problem.contenders.values():
        torch.testing.assert_close(call()[0].double(), truth, rtol=0, atol=1e-4)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's counters")
def test_memory_is_what_a_call_takes_beyond_its_inputs():
    case = replace(CASES["posterior"], keys=2048)
    peaks = peaks_mb(case, 1, 64, CPU)
    logits = 64**2 * 2048 * 4 / 1e6
    assert logits < peaks["cdist"] < 5 * logits
    assert peaks["ours"] < logits / 2


def test_a_row_with_rivals_has_a_table_of_its_own(tmp_path: Path):
    study = tmp_path / "small.toml"
    posterior = 'channels = 31\nkeys = 300\noperation = "patch_posterior"\ncpu_sizes = [[1, 4]]'
    text = STUDY.replace('operation = "perturb"', posterior)
    study.write_text(text.replace("compile = false", "compile = false\nmemory = false"))
    run(Selection(str(study)), Overrides(out=str(tmp_path / "out"), device="cpu"))
    table: Any = pd.read_csv(tmp_path / "out" / "small.csv").set_index("row")
    row = table.loc["perturb"]
    assert row["sdpa_ratio"] == pytest.approx(row["sdpa_ms_q50"] / row["ours_ms_q50"], rel=1e-4)
    assert row["share_of_matmul"] == pytest.approx(
        row["flops"] / row["ours_ms_q50"] / row["matmul_gflop_per_s"] / 1e6, rel=1e-4
    )
    assert "| x_t | 1 × 4² |" in (tmp_path / "out" / "small.md").read_text()


def test_bytes_are_those_of_the_tensors():
    n = 2 * 3 * 16**2
    bytes_of = {
        name: OPERATIONS[case.operation](case, 2, 16, CPU).bytes for name, case in CASES.items()
    }
    assert bytes_of == {
        "perturb by key": 8 * n,
        "perturb by tensor": 12 * n,
        "perturb bf16": 4 * n,
        "sds": 12 * n,
        "sds guided": (4 + 2 * 2 + 4) * n,
        "sds by tensor": 16 * n,
        "degenerate": (4 + 2 + 4) * n,
        "sr castex": 4 * (n + n // 16),
        "sr pipeline": 4 * (4 * n + n + n),
        "posterior": 4 * (2 * 16**2 * (31 + 1 + 31) + 300 * 31),
    }


def test_a_wrong_result_is_reported_and_has_no_speed(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    right = kernel_operations.perturb_problem

    def wrong(*arguments) -> Problem:
        problem = right(*arguments)
        return replace(problem, ours=lambda: (problem.ours()[0] * 1.001,))

    monkeypatch.setitem(OPERATIONS, "perturb", wrong)
    with pytest.raises(
        UserError,
        match=r"larger difference in perturb at 1 × 3 × 8², perturb at 2 × 3 × 16²; no",
    ):
        run(Selection(str(study)), Overrides(out=str(tmp_path / "out"), device="cpu"))
    table: Any = pd.read_csv(tmp_path / "out" / "small.csv").set_index("row")
    assert table.loc["perturb", "ours_ms_q50"].isna().all()
    assert table.loc["perturb", "eager_ms_q50"].isna().all()
    assert table.loc["sds", "ours_ms_q50"].notna().all()
    assert (tmp_path / "out" / "small.md").read_text().count("| refused: difference 0.00") == 2


def test_not_a_number_is_a_wrong_result(monkeypatch: pytest.MonkeyPatch):
    right = OPERATIONS["perturb"]

    def wrong(*arguments) -> Problem:
        problem = right(*arguments)
        return replace(problem, ours=lambda: (problem.ours()[0] * float("nan"),))

    monkeypatch.setitem(OPERATIONS, "perturb", wrong)
    row = measure(CASES["perturb by key"], 1, 8, SETTINGS, CPU)
    assert not row["accepted"]
    assert "ours_ms_q50" not in row


def test_torch_compile_is_timed_too(monkeypatch: pytest.MonkeyPatch):
    compiler = torch.compile
    monkeypatch.setattr(  # its own compiler takes ten seconds a row
        torch, "compile", lambda f, **options: compiler(f, backend="eager", **options)
    )
    row = measure(CASES["perturb by tensor"], 1, 8, replace(SETTINGS, compile=True), CPU)
    assert row["compiled_ratio"] == row["compiled_ms_q50"] / row["ours_ms_q50"]


def test_a_case_is_compiled_once_at_its_last_size(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, **_: compiled.append(f) or f)
    study.write_text(STUDY.replace("compile = false", "compile = true"))
    run(Selection(str(study)), Overrides(out=str(tmp_path / "out"), device="cpu"))
    assert len(compiled) == 2
    table: Any = pd.read_csv(tmp_path / "out" / "small.csv")
    assert table["compiled_ratio"].notna().to_list() == [False, True, False, True]


def test_a_gpu_s_results_do_not_overwrite_a_cpu_s(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sdslab.machine.resolve_device", torch.device)
    folders: list[str] = []
    monkeypatch.setattr(
        "sdslab.study.engine.run_study",
        lambda _kind, _experiment, study, *_, **__: folders.append(study.settings.out),
    )
    for device, out in (("cpu", None), ("cuda", None), ("cuda", "mine")):
        run(Selection(str(study)), Overrides(device=device, out=out))
    assert folders == ["figures", "figures/gpu", "mine"]


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object):
        def fail(*_: object):
            raise RuntimeError("no g++")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match="got RuntimeError: no g\\+\\+; install a C\\+\\+ compiler"):
        measure(CASES["degenerate"], 1, 8, replace(SETTINGS, compile=True), CPU)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cpu_repeats = 2", "repeats = 2", "valid keys are cpu_sizes, cuda_sizes, device"),
        ('"perturb"\n[[', '"opera"\n[[', "must be one of perturb, sds_gradient"),
        ("[[cases]]", "[[case]]", "valid keys are title, kind, settings, cases, presets"),
        ("[2, 16]]", "[2, 16, 1]]", r"must be pairs \[batch, side\].*got \[2, 16, 1\]"),
        ("[presets.quick.cases.sds]", "[presets.quick.cases.x]", "valid keys are perturb, sds"),
    ],
    ids=["setting", "operation", "section", "size", "preset row"],
)
def test_mistakes_name_what_is_valid(study: Path, old: str, new: str, message: str):
    study.write_text(STUDY.replace(old, new))
    preset = None if "[2, 16]" in old else "quick"
    with pytest.raises(UserError, match=message):
        load_study(study, preset)


def test_presets_reach_into_cases(study: Path):
    quick = load_study(study, "quick")
    assert quick.settings.cpu_sizes == ((1, 8),)
    assert [case.guided for case in quick.cases] == [False, False]
    with pytest.raises(UserError, match="preset must be one of quick, got 'slow'"):
        load_study(study, "slow")
    with pytest.raises(UserError, match="--only must name one of perturb, sds, got 'nothing'"):
        run(Selection(str(study), only=("nothing",)), Overrides())


def test_times_are_quantiles_of_milliseconds():
    low, middle, high = quantiles_ms(lambda: sum(range(20_000)), 9, CPU)
    assert 0.01 < low <= middle <= high < 100
    assert spread((1.0, 12.34, 150.0)) == "12.3 (1.0–150.0)"
    assert spread((0.01, 0.01234, 0.1)) == "0.0123 (0.0100–0.1000)"
