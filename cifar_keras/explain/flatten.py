"""Nested models as one flat graph of layers, so that the analyses need not handle nesting."""

from collections import Counter

import keras

from cifar_keras.explain.base import NotApplicable
from cifar_keras.saved.formats import graph_of


class Call(keras.layers.Layer):
    """One call of a layer, under a name of its own. It has no weights but the layer's.

    Attributes:
        layer: the called layer, which other calls may share.
        filled: takes the tensors, returns the layer's arguments as `(positional, named)`.
    """

    def __init__(self, layer, name, filled=lambda *tensors: (tensors, {})):
        super().__init__(name=name, autocast=False)
        self.layer, self.filled, self.built = layer, filled, True
        self._convert_input_args = False  # the layer does, by its own dtype

    def call(self, *tensors):
        arguments, named = self.filled(*tensors)
        return self.layer(*arguments, **named)

    def compute_output_spec(self, *tensors):
        arguments, named = self.filled(*tensors)
        return self.layer.compute_output_spec(*arguments, **named)


class Cast(keras.layers.Layer):
    """The cast that a nested model applies to an input of another dtype."""

    def __init__(self, to, name):
        super().__init__(name=name, autocast=False)
        self.to, self._convert_input_args = to, False

    def call(self, x):
        return keras.ops.cast(x, self.to)


def plain(layer):
    """The layer itself, for a layer of a flat model."""
    return layer.layer if isinstance(layer, Call) else layer


def flattened(model, *, size=None):
    """The same model, for inference, as one graph in which every layer is called once.

    A layer keeps its name where it is unique; else the names of the models around it are put before it (`left.conv`),
    and later calls of one layer are numbered (`conv.2`). Weights are shared, not copied.

    Args:
        model: functional or sequential, with such models nested at any depth.
        size: `(height, width)` of the images, needed where the model leaves them open.
    Returns: functional `keras.Model`: `model` itself where it is flat already.
    Raises: NotApplicable for a subclassed model, whose graph only its code defines, and for several inputs or outputs.
    """
    if (graph := graph_of(model)) is None:
        raise NotApplicable("the model is no graph of layers")
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise NotApplicable(f"the model has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, not one each")
    (inside,) = graph.inputs
    shape = (*size, inside.shape[-1]) if size and None in inside.shape[1:3] else inside.shape[1:]
    if shape == inside.shape[1:] and graph is model and _is_flat(model):
        return model
    inputs = keras.Input(shape, dtype=inside.dtype)
    paths = Counter(path[-1] for path in _paths(graph))
    (output,) = keras.tree.flatten(_inlined(graph, inputs, (), _Names(paths)))
    return keras.Model(inputs, output, name=model.name)


def _is_flat(model):
    operations = model.operations
    return len(operations) == len(model.layers) and all(
        len(one._inbound_nodes) == 1 and graph_of(one) is None for one in operations
    )


def _paths(graph, around=()):
    """The names of each call's layer and of the models around it, outermost first."""
    for nodes in graph._nodes_by_depth.values():
        for node in nodes:
            path = (*around, node.operation.name)
            if not node.is_input:
                yield from [path] if (inner := graph_of(node.operation)) is None else _paths(inner, path)


class _Names:
    """Names for calls, all different.

    Args:
        counts: how many calls there are by the layer's name.
    """

    def __init__(self, counts):
        self.counts, self.used = counts, Counter()

    def __call__(self, path):
        first = name = path[-1] if self.counts[path[-1]] == 1 else ".".join(path)
        while name in self.used:
            self.used[first] += 1
            name = f"{first}.{self.used[first]}"
        self.used[name] += 1
        return name


def _inlined(graph, inputs, around, names):
    """The output tensors of a graph for other inputs; its layers are called one by one, down to the innermost."""

    def called(operation):
        path = (*around, operation.name)
        if (inner := graph_of(operation)) is None:
            return lambda *arguments, **named: _called(operation, names(path), (arguments, _inference(named)))
        return lambda first, *_, **__: _inlined(inner, first, path, names)

    pairs = _pairs(graph, inputs)
    cast = [x if x.dtype == one.dtype else Cast(one.dtype, names((*around, "cast")))(x) for x, one in pairs]
    return graph._run_through_graph(cast, operation_fn=called)


def _called(layer, name, arguments):
    """A layer's output for arguments that hold tensors at any depth, and other values, as in `x + 3.0`."""
    leaves = keras.tree.flatten(arguments)
    tensors = [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]

    def filled(*given):
        given = iter(given)
        values = [next(given) if isinstance(leaf, keras.KerasTensor) else leaf for leaf in leaves]
        return keras.tree.pack_sequence_as(arguments, values)

    return Call(layer, name, filled)(*tensors)


def _pairs(graph, inputs):
    """Pairs of the tensors that a graph is called with and those that it was built with."""
    given = keras.tree.flatten(inputs)
    if isinstance(inputs, dict) and not isinstance(graph._inputs_struct, dict):
        given = [inputs[one.name] for one in graph.inputs]
    return zip(given, graph.inputs, strict=True)


def _inference(named):
    """The arguments of a call without `training`, which Keras itself sets when a model predicts."""
    return {name: value for name, value in named.items() if name != "training"}
