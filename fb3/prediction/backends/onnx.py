"""Encoders by ONNX Runtime, in float32: its CPU kernels have no bf16."""

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
_graphs: dict[str, tuple[bytes, list[int]]] = {}  # graphs and the numbers of their weights, by `key`


def bind(encoder: FunctionalEncoder, precision: Precision) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """A function from input_ids and attention_mask (B, T) to the states that the pooling reads, float32."""
    if encoder.key not in _graphs:
        _graphs[encoder.key] = _convert(encoder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = _ERRORS_ONLY
    graph, read = _graphs[encoder.key]
    arrays = [encoder.weights[number].contiguous().numpy() for number in read]
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays]  # without copying
    options.add_external_initializers([_name(number) for number in read], values)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(input_ids: Tensor, attention_mask: Tensor, kept: object = values) -> list[Tensor]:
        found = session.run(None, dict(zip(_INPUTS, (input_ids.numpy(), attention_mask.numpy()), strict=True)))
        return [torch.from_numpy(states) for states in found]

    return run


def _name(number: int) -> str:
    return f"weight.{number}"


@torch.no_grad()
def _convert(encoder: FunctionalEncoder) -> tuple[bytes, list[int]]:
    """The graph, whose weights are external initializers, and the numbers of the weights that it reads.

    External weights keep it under a protobuf's limit of 2 GB, whatever the encoder's size.
    """
    example, file = encoder.example(), io.BytesIO()
    names = [_name(number) for number in range(len(encoder.weights))]
    outputs = [f"states.{number}" for number in range(len(encoder(*example)))]
    tokens = {0: "texts", 1: "tokens"}
    axes = {0: "texts"} if encoder.reads == "pooler" else tokens
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoder,
            (*example, *encoder.weights),
            file,
            dynamo=False,  # the dynamo exporter needs onnxscript
            opset_version=_OPSET,
            input_names=[*_INPUTS, *names],
            output_names=outputs,
            dynamic_axes=dict.fromkeys(_INPUTS, tokens) | dict.fromkeys(outputs, axes),
        )
    model = onnx.load_from_string(file.getvalue())
    used = set(_names_read(model.graph))
    read = [number for number, name in enumerate(names) if name in used]
    inputs = [graph_input for graph_input in model.graph.input if graph_input.name in _INPUTS]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for number in read:
        shape = encoder.weights[number].shape
        weight = onnx.TensorProto(name=names[number], data_type=onnx.TensorProto.FLOAT, dims=shape)
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="given")
        model.graph.initializer.append(weight)
    return model.SerializeToString(), read


def _names_read(graph: onnx.GraphProto) -> Iterator[str]:
    """The names that the nodes of a graph read, and the nodes of graphs inside them (If, Loop)."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            yield from _names_read(attribute.g)
