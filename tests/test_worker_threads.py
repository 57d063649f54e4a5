import threading

import pytest
import torch

from sdslab.machine import run_all, split


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("calls", [0, 1, 2, 9])
def test_every_call_is_made_once_before_it_returns(threads: int, calls: int):
    made: list[int] = []
    run_all(lambda index, _: made.append(index), [(index, threads) for index in range(calls)])
    assert sorted(made) == list(range(calls))


def test_calls_run_at_the_same_time_and_one_of_them_here():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    meeting, seen = threading.Barrier(3), set()

    def kernel(index: int) -> None:
        seen.add(threading.get_ident())
        meeting.wait(timeout=10 + index)

    try:
        run_all(kernel, [(index,) for index in range(3)])
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 3
    assert threading.get_ident() in seen


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_reaches_the_caller(threads: int, failing: int):
    def kernel(index: int, _: int) -> None:
        if index == failing:
            raise ValueError(f"call {index}")

    with pytest.raises(ValueError, match=f"call {failing}"):
        run_all(kernel, [(index, threads) for index in range(2)])


@pytest.mark.parametrize(("total", "parts"), [(10, 3), (3, 10), (1, 1), (7, 0)])
def test_parts_cover_everything_once(total: int, parts: int):
    ranges = split(total, parts)
    assert [i for part in ranges for i in part] == list(range(total))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
