import pytest
import torch

from sdslab.machine import out_of_memory_message

REMEDY = "give --low-memory"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of "
                "15.77 GiB of which 1.12 GiB is free."
            ),
            f"the GPU's memory is not enough for 2.50 GiB more; {REMEDY}",
        ),
        (torch.OutOfMemoryError("odd"), f"the GPU's memory is not enough; {REMEDY}"),
        (MemoryError(), f"the computer's memory is not enough; {REMEDY}"),
        (RuntimeError("shapes do not fit"), None),
        (ValueError("DefaultCPUAllocator"), None),
    ],
)
def test_the_message_names_what_lowers_memory(error: Exception, message: str | None):
    assert out_of_memory_message(error, REMEDY) == message


def test_torch_s_own_error_on_the_cpu_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**14)
    message = out_of_memory_message(caught.value, REMEDY)
    assert (
        message == f"the computer's memory is not enough for 400000000000000 bytes more; {REMEDY}"
    )
