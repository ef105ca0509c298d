"""ONNX Runtime, in float32 on the CPU."""

import numpy as np
import torch

from pixelwise.engines.exported import Run


def compile_graph(graph: bytes) -> Run:
    """Turn an ONNX graph into a function of images, for any N, H and W that the graph takes.

    It uses as many threads as torch does (`torch.set_num_threads`, OMP_NUM_THREADS).

    Raises:
        Exception: ONNX Runtime cannot run the graph; of one of its own kinds.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # only errors
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name

    def run(images: np.ndarray) -> list[np.ndarray]:
        return list(session.run(None, {source: images}))

    return run
