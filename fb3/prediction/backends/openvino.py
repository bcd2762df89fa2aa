"""Encoders by OpenVINO: a trace goes through its PyTorch frontend and is compiled for this CPU."""

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

_HINTS = (("BF16", "bf16"), ("FP16", "f16"))  # capability of a chip, hint; AMX is faster in bf16, so it comes first
_graphs: dict[str, openvino.Model] = {}  # converted encoders, by `FunctionalEncoder.key`


def bind(encoder: FunctionalEncoder, precision: Precision) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """A function from input_ids and attention_mask (B, T) to the states that the pooling reads, float32."""
    if encoder.key not in _graphs:
        _graphs[encoder.key] = _convert(encoder)
    model, core = _with_weights(_graphs[encoder.key], encoder), openvino.Core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    hint = "f32" if precision == "fp32" else next((hint for name, hint in _HINTS if name in capabilities), "f32")
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
def _convert(encoder: FunctionalEncoder) -> openvino.Model:
    """The graph, with weights as parameters.

    Calls the frontend itself: `openvino.convert_model` does so too, but then spends several times as long on
    optimising the graph, which compiling does anyway.
    """
    example = (*encoder.example(), *encoder.weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ignores that the trace fixes values; `BackendEncoder.check` finds wrong ones
        traced = torch.jit.trace(encoder, example, check_trace=False, strict=False)
        decoder = TorchScriptPythonDecoder(traced, example_input=example)  # a name keeps it alive; `load` does not
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


def _with_weights(graph: openvino.Model, encoder: FunctionalEncoder) -> openvino.Model:
    """A copy of the graph whose weights are constants that share the encoder's memory."""
    model = graph.clone()
    ids, mask, *rest = model.get_parameters()
    for parameter, weight in zip(rest, encoder.weights, strict=True):
        constant = opset13.constant(weight.contiguous().numpy(), shared_memory=True)
        parameter.output(0).replace(constant.output(0))
        model.remove_parameter(parameter)
    for parameter in (ids, mask):
        parameter.set_element_type(openvino.Type.i64)
        parameter.set_partial_shape(openvino.PartialShape([-1, -1]))
    model.validate_nodes_and_infer_types()
    return model
