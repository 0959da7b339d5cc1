"""Unmodified onnxruntime-cann: how far it gets, and what it says where it stops. Prints one JSON object.

onnx_add.py GRAPH: the provider compiles whole graphs (GRAPH 1, its default) or calls single operators (0).
"""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
import onnxruntime as ort

warnings.simplefilter("ignore")


def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number: int, value: int | str | bytes) -> bytes:
    """One field of a protocol buffer: a number, or a string of bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str) -> bytes:
    shape = field(1, field(1, 2)) + field(1, field(1, 3))
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))


def node(op: str, inputs: list[str], output: str) -> bytes:
    return b"".join(field(1, i) for i in inputs) + field(2, output) + field(4, op)


def model() -> bytes:
    """relu(a + b) * b, for float32 [2, 3]."""
    nodes = [node("Add", ["a", "b"], "s"), node("Mul", ["s", "b"], "m"), node("Relu", ["m"], "y")]
    graph = b"".join(field(1, n) for n in nodes) + field(2, "small")
    graph += field(11, tensor("a")) + field(11, tensor("b")) + field(12, tensor("y"))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13))


def main() -> None:
    result: dict[str, object] = {"version": ort.__version__, "providers": ort.get_available_providers()}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    cann = ("CANNExecutionProvider", {"device_id": 0, "enable_cann_graph": sys.argv[1]})
    try:
        session = ort.InferenceSession(model(), options, providers=[cann])
        result["session"] = session.get_providers()
        a = np.array([[1, -2, 3], [-4, 5, -6]], np.float32)
        b = np.array([[1, 1, -1], [2, -2, 0.5]], np.float32)
        (y,) = session.run(None, {"a": a, "b": b})
        result["y"] = y.tolist()
        result["right"] = bool(np.array_equal(y, np.maximum((a + b) * b, 0)))
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(result))


main()
