"""ONNX Runtime, in float32: its CPU kernels have no bf16."""

import io
import warnings
from collections.abc import Callable, Iterator

import onnx
import onnxruntime
import torch
from torch import Tensor

from fb3.prediction.backends.functional_encoder import FunctionalEncoder
from fb3.system.devices import Precision

_OPSET = 17
_INPUTS = ["input_ids", "attention_mask"]
_ERRORS_ONLY = 3  # onnxruntime's log severity
_graphs: dict[str, tuple[bytes, list[int]]] = {}  # and which of the weights it reads


def bind(bare: FunctionalEncoder, precision: Precision) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """A function from input_ids and attention_mask (B, T) to the states that the pooling reads, float32."""
    if bare.key not in _graphs:
        _graphs[bare.key] = _convert(bare)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = _ERRORS_ONLY
    graph, read = _graphs[bare.key]
    arrays = [bare.weights[number].contiguous().numpy() for number in read]
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays]  # share the encoder's memory
    options.add_external_initializers([_name(number) for number in read], values)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(input_ids: Tensor, attention_mask: Tensor, kept: object = values) -> list[Tensor]:
        found = session.run(None, dict(zip(_INPUTS, (input_ids.numpy(), attention_mask.numpy()), strict=True)))
        return [torch.from_numpy(states) for states in found]

    return run


def _name(number: int) -> str:
    return f"weight.{number}"


@torch.no_grad()
def _convert(bare: FunctionalEncoder) -> tuple[bytes, list[int]]:
    """The graph with weights as initializers outside it: small, whatever the encoder's size, and under the 2 GB that
    a protobuf may have."""
    example, file = bare.example(), io.BytesIO()
    names = [_name(number) for number in range(len(bare.weights))]
    outputs = [f"states.{number}" for number in range(len(bare(*example)))]
    tokens = {0: "texts", 1: "tokens"}
    axes = {0: "texts"} if bare.reads == "pooler" else tokens
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            bare,
            (*example, *bare.weights),
            file,
            dynamo=False,  # the other way wants onnxscript
            opset_version=_OPSET,
            input_names=[*_INPUTS, *names],
            output_names=outputs,
            dynamic_axes=dict.fromkeys(_INPUTS, tokens) | dict.fromkeys(outputs, axes),
        )
    model = onnx.load_from_string(file.getvalue())
    used = set(_names_read(model.graph))
    read = [number for number, name in enumerate(names) if name in used]
    own = [each for each in model.graph.input if each.name in _INPUTS]
    del model.graph.input[:]
    model.graph.input.extend(own)
    for number in read:
        shape = bare.weights[number].shape
        weight = onnx.TensorProto(name=names[number], data_type=onnx.TensorProto.FLOAT, dims=shape)
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="given")
        model.graph.initializer.append(weight)
    return model.SerializeToString(), read


def _names_read(graph: onnx.GraphProto) -> Iterator[str]:
    """What the nodes of a graph read, and of those in them (If, Loop)."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            yield from _names_read(attribute.g)
