import pytest
import torch

from sdslab.devices import out_of_memory_message

FLAGS = "give --low-memory, fewer --views or a smaller --render-size"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of "
                "15.77 GiB of which 1.12 GiB is free."
            ),
            f"the GPU's memory is not enough for 2.50 GiB more; {FLAGS}",
        ),
        (torch.OutOfMemoryError("odd"), f"the GPU's memory is not enough; {FLAGS}"),
        (MemoryError(), f"the computer's memory is not enough; {FLAGS}"),
        (RuntimeError("shapes do not fit"), None),
        (ValueError("DefaultCPUAllocator"), None),
    ],
)
def test_the_message_names_the_flags_that_lower_memory(error: Exception, message: str | None):
    assert out_of_memory_message(error) == message


def test_torch_s_own_error_on_the_cpu_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**14)
    message = out_of_memory_message(caught.value)
    assert message == f"the computer's memory is not enough for 400000000000000 bytes more; {FLAGS}"
