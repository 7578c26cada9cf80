"""What is read out of other people's error messages."""

import pytest

from resnetlab.errors import first_informative_line, is_out_of_memory

GRAPH_ERROR = """Graph execution error:

Detected at node gradient_tape/trainer/conv1/Conv2DBackpropFilter defined at (most recent call last):
  File "train.py", line 12, in <module>
    model.fit(batches)

  File "keras/src/trainers/trainer.py", line 371, in fit

OOM when allocating tensor with shape[4096,64,112,112] and type float on device:GPU:0 by allocator GPU_0_bfc
\t [[{{node gradient_tape/trainer/conv1/Conv2DBackpropFilter}}]]
Hint: If you want to see a list of allocated tensors when OOM happens, add report_tensor_allocations_upon_oom
 [Op:__inference_multi_step_on_iterator_4711]"""


def test_the_cause_of_a_graph_error_is_found_below_its_heading_and_stack() -> None:
    assert first_informative_line(RuntimeError(GRAPH_ERROR)).startswith(
        "OOM when allocating tensor with shape[4096,64,"
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("shapes differ\nmore"), "shapes differ"),
        (KeyError(), "KeyError"),
        (RuntimeError("Graph execution error:"), "Graph execution error:"),
        ("\n\n  no GPU  \n", "no GPU"),
        (RuntimeError("x" * 500), "x" * 200),
    ],
)
def test_the_first_line_that_says_something(error: BaseException | str, line: str) -> None:
    assert first_informative_line(error) == line


@pytest.mark.parametrize(
    "error",
    [
        GRAPH_ERROR,
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes.",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
        "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        "std::bad_alloc",
        "Failed to allocate request for 2.0GiB",
        MemoryError(),
        "Unable to allocate 3.00 GiB for an array",
    ],
)
def test_out_of_memory_is_recognised(error: BaseException | str) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        "no room for class mushroom",
        "invalid device function in allocator.cc:12",
        "the classroom data set has no images",
        "misallocated stride",
        "zoom factor must be positive",
    ],
)
def test_other_errors_are_not_out_of_memory(error: str) -> None:
    assert not is_out_of_memory(error)
