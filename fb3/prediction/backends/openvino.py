"""OpenVINO: the trace through its PyTorch frontend, compiled for this CPU."""

import warnings
from collections.abc import Callable

import openvino
import torch
from openvino import opset13
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor

from fb3.prediction.backends.functional_encoder import FunctionalEncoder
from fb3.system.devices import Precision

_HINTS = (("BF16", "bf16"), ("FP16", "f16"))  # what a chip has in hardware, the faster one of AMX first
_graphs: dict[str, openvino.Model] = {}


def bind(bare: FunctionalEncoder, precision: Precision) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """A function from input_ids and attention_mask (B, T) to the states that the pooling reads, float32."""
    if bare.key not in _graphs:
        _graphs[bare.key] = _convert(bare)
    model, core = _with_weights(_graphs[bare.key], bare), openvino.Core()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    hint = "f32" if precision == "fp32" else next((hint for name, hint in _HINTS if name in able), "f32")
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        found = request.infer([input_ids.numpy(), attention_mask.numpy()])  # copies: the request reuses its memory
        return [torch.from_numpy(found[place]) for place in range(len(found))]

    return run


@torch.no_grad()
def _convert(bare: FunctionalEncoder) -> openvino.Model:
    """The graph with weights as parameters.

    By the frontend itself: `openvino.convert_model` does the same, and then works on the graph for several times as
    long, which compiling does anyway.
    """
    example = (*bare.example(), *bare.weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that the trace keeps: `check` looks at the outcome
        traced = torch.jit.trace(bare, example, check_trace=False, strict=False)
        decoder = TorchScriptPythonDecoder(traced, example_input=example)  # named, because `load` does not keep it
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


def _with_weights(graph: openvino.Model, bare: FunctionalEncoder) -> openvino.Model:
    """A copy whose weights are constants that share the encoder's memory."""
    model = graph.clone()
    ids, mask, *rest = model.get_parameters()
    for parameter, weight in zip(rest, bare.weights, strict=True):
        constant = opset13.constant(weight.contiguous().numpy(), shared_memory=True)
        parameter.output(0).replace(constant.output(0))
        model.remove_parameter(parameter)
    for parameter in (ids, mask):
        parameter.set_element_type(openvino.Type.i64)
        parameter.set_partial_shape(openvino.PartialShape([-1, -1]))
    model.validate_nodes_and_infer_types()
    return model
