"""`GraphWriter`: an ONNX graph, node by node, in float32 or with products and tables in 8 bits.

Values are named by the strings that the methods return. Weights keep their names in the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor, nn

#: The first opset with LayerNormalization; all that follow read it too.
OPSET = 17
#: The last opset whose operators were checked here.
LAST_OPSET = 24
#: Added to the scores of what must not be attended to. Finite: where nothing may be attended to,
#: as in a row of padding, a softmax over minus infinities would be NaN.
MASKED = float(np.finfo(np.float32).min)
#: The largest integer of a matrix that is multiplied with. Of 7 bits only: without VNNI, processors
#: add two products of 8 bits in 16 bits, where two times 255 * 127 does not fit (onnxruntime's
#: "reduce_range"), and a file goes to machines that nobody knows here.
PRODUCT = 63


class GraphWriter:
    """An ONNX graph that is being written.

    Args:
        model: whose parameters give the weights their names.
        opset: version of ONNX's operators.
        int8: write products and tables of embeddings in 8 bits: weights with one scale for each
            output, what they are multiplied with by one scale that is found when it runs.
    """

    def __init__(self, model: nn.Module, *, opset: int = OPSET, int8: bool = False) -> None:
        self.opset = opset
        self.int8 = int8
        self._nodes: list[Any] = []
        self._weights: dict[str, Any] = {}
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []
        self._count = 0
        self._names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
        self._kept: dict[Any, Any] = {}  # what is written once, by what it was made from
        self._tables: dict[int, Tensor] = {}  # tables of embeddings that are output layers too

    # Inputs, outputs, nodes

    def input(self, name: str, shape: Sequence[str | int], kind: int = TensorProto.INT64) -> str:
        """Declare an input; a string in its shape is the name of a size that may change."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, name: str, value: str, shape: Sequence[str | int]) -> None:
        """Make a float32 value an output of that name."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output."""
        (value,) = self.add_many(kind, 1, *inputs, **attributes)
        return value

    def add_many(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Append a node with several outputs."""
        values = [self._new(kind) for _ in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), values, **attributes))
        return values

    @contextmanager
    def branch(self) -> Iterator[list[Any]]:
        """Context in which nodes go to a list of their own, for a branch of an If."""
        outer, kept = self._nodes, dict(self._kept)
        self._nodes = []
        try:
            yield self._nodes
        finally:
            self._nodes, self._kept = outer, kept  # values of a branch are unknown outside

    def choose(
        self, condition: str, then: tuple[list[Any], list[str]], other: tuple[list[Any], list[str]]
    ) -> list[str]:
        """Append an If; each branch has its nodes and the names of its float32 values."""
        graphs = []
        for nodes, values in (then, other):
            outputs = [
                helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in values
            ]
            graphs.append(helper.make_graph(nodes, self._new("branch"), [], outputs))
        return self.add_many(
            "If", len(then[1]), condition, then_branch=graphs[0], else_branch=graphs[1]
        )

    def _new(self, kind: str) -> str:
        self._count += 1
        return f"{kind.lower()}_{self._count}"

    # Constants and weights

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self._array(np.asarray(value, np.float32), f"float_{value!r}")

    def ints(self, *values: int) -> str:
        """An int64 vector."""
        name = "ints_" + "_".join(map(str, values))
        return self._array(np.asarray(values, np.int64).reshape(-1), name)

    def whole(self, value: int) -> str:
        """An int64 scalar."""
        return self._array(np.asarray(value, np.int64), f"int_{value}")

    def weight(self, value: Tensor, *, transposed: bool = False) -> str:
        """A weight as it is, or a matrix lying down; a weight is written once."""
        key = (id(value), transposed)
        if key not in self._kept:
            array = value.detach().to("cpu", torch.float32)
            name = self.name_of(value) + (".transposed" if transposed else "")
            # The tensor is kept beside its name: no other may get its id.
            written = self._array((array.t() if transposed else array).contiguous().numpy(), name)
            self._kept[key] = (written, value)
        return str(self._kept[key][0])

    def name_of(self, value: Tensor) -> str:
        """The name of a parameter in the model, or a new name."""
        return self._names.get(id(value)) or self._new("constant")

    def _array(self, array: NDArray[Any], name: str) -> str:
        if name not in self._weights:
            self._weights[name] = numpy_helper.from_array(array, name)
        return name

    # Blocks

    def share(self, table: Tensor) -> None:
        """Say of a table of embeddings that it is also the matrix of a product.

        It is in the file once, and turned over where it is multiplied with; onnxruntime does so
        when it loads the file.
        """
        self._tables[id(table)] = table

    def linear(self, x: str, weight: Tensor, bias: Tensor | None = None) -> str:
        """Write `x @ weight.T + bias`, as `torch.nn.functional.linear`."""
        shared = id(weight) in self._tables
        if self.int8:
            product = self._int8_product(x, weight, shared=shared)
        elif shared:
            product = self.add("MatMul", x, self.add("Transpose", self.weight(weight), perm=[1, 0]))
        else:
            product = self.add("MatMul", x, self.weight(weight, transposed=True))
        return product if bias is None else self.add("Add", product, self.weight(bias))

    def embedding(self, table: Tensor, ids: str) -> str:
        """Write the lookup of rows of a table."""
        if not self.int8 or id(table) not in self._names:  # computed ones, such as sinusoids
            return self.add("Gather", self.weight(table), ids)
        largest = PRODUCT if id(table) in self._tables else 127
        integers, scale = self._int8_rows(table, largest, transposed=False)
        rows = self.add("Cast", self.add("Gather", integers, ids), to=TensorProto.FLOAT)
        column = self._array(scale[:, None], f"{integers}.row_scale")
        return self.add("Mul", rows, self.add("Gather", column, ids))

    def _int8_product(self, x: str, weight: Tensor, *, shared: bool) -> str:
        """Write a product of integers, with scales that turn the sums into numbers again."""
        if ("levels", x) not in self._kept:  # several products may read the same values
            self._kept["levels", x] = self.add_many("DynamicQuantizeLinear", 3, x)
        levels, x_scale, zero = self._kept["levels", x]
        integers, scale = self._int8_rows(weight, PRODUCT, transposed=not shared)
        vector = self._array(scale, f"{integers}.scale")
        if shared:
            integers = self.add("Transpose", integers, perm=[1, 0])
        sums = self.add("MatMulInteger", levels, integers, zero)
        scales = self.add("Mul", x_scale, vector)
        return self.add("Mul", self.add("Cast", sums, to=TensorProto.FLOAT), scales)

    def _int8_rows(
        self, weight: Tensor, largest: int, *, transposed: bool
    ) -> tuple[str, NDArray[np.float32]]:
        """Write a matrix in integers: its name, and the scale of each of its rows."""
        key = ("int8", id(weight), transposed)
        if key not in self._kept:
            rows = weight.detach().to("cpu", torch.float32)
            scale = (rows.abs().amax(1) / largest).clamp(min=float(np.finfo(np.float32).tiny))
            integers = (rows / scale[:, None]).round().clamp(-largest, largest).to(torch.int8)
            lying = (integers.t() if transposed else integers).contiguous().numpy()
            name = self._array(lying, f"{self.name_of(weight)}.int8")
            # The tensor is kept beside its name: no other may get its id.
            self._kept[key] = (name, scale.numpy(), weight)
        written, scales, _ = self._kept[key]
        return written, scales

    def layer_norm(self, x: str, weight: Tensor, bias: Tensor | None, eps: float) -> str:
        """Write a LayerNorm over the last dimension."""
        own = () if bias is None else (self.weight(bias),)
        return self.add("LayerNormalization", x, self.weight(weight), *own, axis=-1, epsilon=eps)

    def rms_norm(self, x: str, weight: Tensor, eps: float) -> str:
        """Write x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
        squares = self.add("Mul", x, x)
        # Its axes are an attribute before opset 18, and an input from then on.
        if self.opset < 18:
            mean = self.add("ReduceMean", squares, axes=[-1], keepdims=1)
        else:
            mean = self.add("ReduceMean", squares, self.ints(-1), keepdims=1)
        root = self.add("Sqrt", self.add("Add", mean, self.number(eps)))
        return self.add("Mul", self.add("Div", x, root), self.weight(weight))

    def gelu(self, x: str, *, approximate: str = "none") -> str:
        """Write GELU, exact or by its tanh approximation; before opset 20 in its parts."""
        if self.opset >= 20:
            return self.add("Gelu", x, approximate=approximate)
        # In the order in which onnxruntime recognises it and takes its own kernel.
        if approximate == "none":
            erf = self.add("Erf", self.add("Div", x, self.number(math.sqrt(2))))
            scaled = self.add("Mul", x, self.add("Add", erf, self.number(1)))
            return self.add("Mul", scaled, self.number(0.5))
        cube = self.add("Mul", self.number(0.044715), self.add("Pow", x, self.number(3)))
        inner = self.add("Mul", self.number(math.sqrt(2 / math.pi)), self.add("Add", x, cube))
        sum_ = self.add("Add", self.number(1), self.add("Tanh", inner))
        return self.add("Mul", self.add("Mul", self.number(0.5), x), sum_)

    def silu(self, x: str) -> str:
        """Write x * sigmoid(x)."""
        return self.add("Mul", x, self.add("Sigmoid", x))

    # Shapes

    def size(self, x: str, axis: int) -> str:
        """The size of a dimension, as an int64 vector of length 1."""
        if ("size", x, axis) not in self._kept:
            self._kept["size", x, axis] = self.add("Shape", x, start=axis, end=axis + 1)
        return str(self._kept["size", x, axis])

    def range_to(self, end: str) -> str:
        """The numbers 0 to `end` - 1, where `end` is a vector of length 1."""
        scalar = self.add("Squeeze", end, self.ints(0))
        return self.add("Range", self.whole(0), scalar, self.whole(1))

    def unsqueeze(self, x: str, *axes: int) -> str:
        """Insert dimensions of size 1."""
        return self.add("Unsqueeze", x, self.ints(*axes))

    def as_float(self, x: str) -> str:
        """Convert to float32."""
        return self.add("Cast", x, to=TensorProto.FLOAT)

    # The whole

    def model(self, metadata: Mapping[str, str], producer: str) -> ModelProto:
        """Put the graph together, with texts that go into the file by name."""
        graph: GraphProto = helper.make_graph(
            self._nodes, "pretune", self._inputs, self._outputs, list(self._weights.values())
        )
        imports = [helper.make_opsetid("", self.opset)]
        # The oldest format that has these operators: older readers open it too.
        model = helper.make_model(
            graph,
            opset_imports=imports,
            ir_version=helper.find_min_ir_version_for(imports),
            producer_name="pretune",
            producer_version=producer,
        )
        helper.set_model_props(model, dict(metadata))
        return model
