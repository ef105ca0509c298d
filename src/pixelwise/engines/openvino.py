"""OpenVINO: the fastest engine on most CPUs. float32 means float32, also on CPUs that have bfloat16."""

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from pixelwise.engines.exported import Run

if TYPE_CHECKING:
    import openvino


def compile_graph(graph: bytes) -> Run:
    """Turn an ONNX graph into a function of images, for any N, H and W that the graph takes.

    It uses as many threads as torch does (`torch.set_num_threads`, OMP_NUM_THREADS), by default one for each physical
    core. One compilation serves all sizes: it is 1 to 8% slower than one for each size, and a new size costs a tenth
    of a call. What it returns is a copy, so that it outlives the next call.

    OpenVINO's own cache would not pay: it compiles in a tenth of a second, and loads from its cache in half of that.

    Raises:
        RuntimeError: OpenVINO cannot run it.
    """
    core = _core()
    compiled = core.compile_model(core.read_model(graph), "CPU", _settings())
    request = compiled.create_infer_request()

    def run(images: np.ndarray) -> list[np.ndarray]:
        return list(request.infer([images], share_inputs=True, share_outputs=False).values())

    return run


@cache
def _core() -> "openvino.Core":
    """OpenVINO itself; it wants to be started once in a process."""
    import openvino

    return openvino.Core()


def _settings() -> dict[str, str | int]:
    return {
        "INFERENCE_PRECISION_HINT": "f32",  # without it bfloat16, or on ARM float16, where the CPU has them
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,  # images one after the other, each on all threads: takes the least memory
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
