"""Weights in an HDF5 file, in any of Keras' layouts: checked, and put into their model.

By layer (`.h5`): a group for each layer, by name. In containers (`.keras` and `.weights.h5`, since Keras 2.13): groups
numbered by class in the order of the layers, as in `layers/conv2d_1`. Every value must match, or none is used.
"""

import math
import re
import tempfile
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import h5py
import keras
import numpy as np

from cifar_keras.config import ConfigError
from cifar_keras.utils.text import to_stderr

CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # the second in Keras 2.13 and 2.14
WEIGHTS_MEMBER = "model.weights.h5"
LEAST_BYTES = 2**20  # a small file may have chunks larger than itself
MAX_EXPANSION = 10  # how many times its size a file may unpack to; weights hardly compress
MOVING_STATISTICS = ("moving_mean", "moving_variance")
KERAS3_NAMES = {"depthwise_kernel": "kernel", "model": "functional"}  # by those of Keras 2


def check(file, stored_bytes):
    """Refuses an open file of `stored_bytes` whose weights are elsewhere, not numbers, or far larger in memory.

    Raises: ConfigError for any of these.
    """
    links = []
    file.visititems_links(lambda name, link: links.append(name) if not isinstance(link, h5py.HardLink) else None)
    found = _datasets(file)
    elsewhere = [*links, *(item.name for item in found if item.external or item.is_virtual)]
    if elsewhere:
        raise ConfigError(f"The weights must be in the file itself. Received: {elsewhere[0]!r}, which is elsewhere.")
    if others := [item.name for item in found if item.dtype.kind not in "biuf" and not _is_bfloat16(item.dtype)]:
        raise ConfigError(f"The weights must be numbers. Received: {others[0]!r}, which holds values of another kind.")
    _check_total(found, stored_bytes)


def _is_bfloat16(dtype):
    """HDF5 does not know `bfloat16`, which is stored as two bytes without a type."""
    return dtype.kind == "V" and dtype.itemsize == 2 and not dtype.names


def _check_total(datasets, stored_bytes):
    # To read one value HDF5 unpacks a whole chunk, which may be far larger than its dataset.
    values = ((item.size or 0, math.prod(item.chunks or ())) for item in datasets)
    claimed = sum(max(pair) * item.dtype.itemsize for pair, item in zip(values, datasets, strict=True))
    most = MAX_EXPANSION * max(stored_bytes, LEAST_BYTES)
    if claimed > most:
        raise ConfigError(f"The weights must unpack to at most {most:,} bytes. Received: {claimed:,}.")


def _datasets(group):
    found = []
    group.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    return found


def fill(model, config, file, *, stored_bytes):
    """Puts the weights of a file into a model.

    Args:
        model: built from `config`; its weights are overwritten.
        config: the description in Keras 3's terms, with the layers in the order of the program that wrote the file.
        file: an open `h5py.File` that `check` has passed.
        stored_bytes: its size.
    Raises: ConfigError where the file holds fewer weights than the model needs, more, or others.
    """
    by_layer = file.get("model_weights", file)
    if _names(by_layer, "layer_names"):
        _fill_by_layer(model, by_layer)
    elif any(name in file for name in CONTAINERS):
        _fill_from_containers(model, config, file, stored_bytes)
    elif model.weights:
        raise ConfigError(
            "The weights must be as Keras saves them: a `.keras`, an `.h5` or a `.weights.h5`. "
            f"Received: an HDF5 file that holds {', '.join(sorted(file)[:5]) or 'nothing'}."
        )


# By layer -------------------------------------------------------------------------------------------------------------


def _fill_by_layer(model, group):
    stored = {name: _weights(group[name]) for name in _names(group, "layer_names")}
    stored = {name: weights for name, weights in stored.items() if weights}
    needed = {layer.name: layer for layer in model.layers if layer.weights}
    for name, stored_name in _paired(needed, stored).items():
        _assign(needed[name], stored[stored_name])
    for layer in model._flatten_layers(include_self=False):
        if layer.weights and hasattr(layer, "finalize_state"):  # Normalization computes with what it derives from them
            layer.finalize_state()


def _names(group, kind):
    """A list of names; a long one is cut into several attributes."""
    keys = [key for key in group.attrs if re.fullmatch(rf"{kind}\d*", key)]
    keys.sort(key=lambda key: int(key[len(kind) :] or 0))
    names = (name for key in keys for name in group.attrs[key])
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _weights(group):
    """The weights of a layer: datasets by name, in the stored order."""
    return {name: group[name] for name in _names(group, "weight_names")}


def _paired(needed, stored):
    """The stored layer of each of the model's: by name, or by rank where the names differ only in their numbers.

    Keras numbers a layer `conv2d_7` by all that its program built before, so running a notebook's cell twice gives an
    equal network other names.
    """
    if set(needed) == set(stored):
        return {name: name for name in needed}
    mine, theirs = _ranked(needed), _ranked(stored)
    if set(mine) != set(theirs):
        raise ConfigError(
            f"The weights must be those of the architecture's layers. Received: {len(stored)} layers' for "
            f"{len(needed)}; first difference: {min(set(stored) ^ set(needed))!r}."
        )
    pairs = {mine[rank]: theirs[rank] for rank in mine}
    first = next(name for name in pairs if pairs[name] != name)
    to_stderr(
        f"The weights' layers have other numbers than the architecture's: {pairs[first]!r} was taken for {first!r}, "
        "and so on in their order."
    )
    return pairs


def _ranked(names):
    """Names by `(name without its number, rank)`."""
    kinds = defaultdict(list)
    for name in names:
        kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", name, re.DOTALL).groups()
        kinds[KERAS3_NAMES.get(kind, kind)].append((int(number or 0), name))
    return {(kind, rank): name for kind, found in kinds.items() for rank, (_, name) in enumerate(sorted(found))}


def _assign(layer, stored):
    """Puts stored weights into a layer. Raises ConfigError where shapes differ."""
    variables = _as_stored(layer, list(stored))
    mine, theirs = ([tuple(item.shape) for item in items] for items in (variables, stored.values()))
    if mine != theirs:
        raise ConfigError(
            f"The weights must have the shapes that the architecture's layers need. Received: {theirs} for "
            f"{layer.name!r}, which needs {mine}."
        )
    for variable, dataset in zip(variables, stored.values(), strict=True):
        variable.assign(_values(dataset))


def _as_stored(layer, names):
    """The layer's variables in the order in which they are stored.

    Names decide where possible, as the order depends on which layers were frozen at saving, and statistics have the
    same shape as scales. Otherwise it is Keras' own order: trainable weights, then the rest.
    """
    usual = layer.trainable_weights + layer.non_trainable_weights
    for depth in (2, 1):
        mine, theirs = [_ending(item.path, depth) for item in usual], [_ending(name, depth) for name in names]
        if len(set(mine)) == len(mine) and sorted(mine) == sorted(theirs):
            by_name = dict(zip(mine, usual, strict=True))
            return [by_name[name] for name in theirs]
    unfrozen = sorted(layer.weights, key=lambda item: item.name in MOVING_STATISTICS)
    orders = (usual, layer.weights, unfrozen)
    return next((order for order in orders if [_ending(item.path, 1) for item in order] == theirs), usual)


def _ending(name, depth):
    """The last parts of a weight's name, in Keras 3's terms."""
    return "/".join(KERAS3_NAMES.get(part, part) for part in name.removesuffix(":0").split("/")[-depth:])


def _values(dataset):
    """The numbers of a dataset, those of `bfloat16` as float32."""
    values = dataset[()]
    if _is_bfloat16(dataset.dtype):
        return (np.asarray(values).view("uint16").astype("uint32") << 16).view("float32")
    return values


# In containers --------------------------------------------------------------------------------------------------------


def _fill_from_containers(model, config, file, stored_bytes):
    """Copies the groups into the order of Keras 3, which then reads them, as it knows the inside of each layer."""
    groups = list(_groups(model, config["config"], file, "layers"))
    _check_total([item for source, _ in groups for item in _datasets(file[source])], stored_bytes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS_MEMBER
        with h5py.File(path, "w") as target:
            for source, to in groups:
                file.copy(source, target, to)
        with warnings.catch_warnings():  # about what it would skip, which then raises
            warnings.simplefilter("ignore")
            model.load_weights(path)


def _groups(model, config, group, to):
    """Pairs of names: the group with a layer's weights in the file, and the one that Keras 3 reads."""
    container = group[next(name for name in CONTAINERS if name in group)]
    stored = {name for name in container if _datasets(container[name])}
    entries = {entry["config"]["name"]: entry for entry in config["layers"]}
    layers = {layer.name: layer for layer in model.layers}
    sources = _sources([layers[name] for name in entries if name in layers], container, stored)
    for layer, target in zip(model.layers, _numbered(model.layers), strict=True):
        if (source := sources[layer.name]) not in stored:
            continue
        if isinstance(layer, keras.Model):
            yield from _groups(layer, entries[layer.name]["config"], container[source], f"{to}/{target}/layers")
        else:
            yield container[source].name, f"{to}/{target}"


def _sources(layers, container, stored):
    """The groups of layers, by the layers' names. Raises ConfigError where the groups are not those of the layers."""
    for twice in (False, True):
        names = _numbered(layers, twice=twice)
        needed = {name for name, layer in zip(names, layers, strict=True) if layer.weights}
        if needed <= stored <= set(names):
            return dict(zip((layer.name for layer in layers), names, strict=True))
    names = _numbered(layers)
    raise ConfigError(
        f"The weights must be those of the architecture's layers. Received: {len(stored)} layers' for {len(needed)} in "
        f"{container.name!r}; first difference: {min((stored - set(names)) | (needed - stored), default='')!r}."
    )


def _numbered(layers, *, twice=False):
    """Names of groups: the class, from the second on with a number. Keras 2.13 counts a layer with weights `twice`."""
    names, seen = [], Counter()
    for layer in layers:
        kind = _snake_case(type(layer).__name__)
        names.append(f"{kind}_{seen[kind]}" if seen[kind] else kind)
        seen[kind] += 2 if twice and layer.weights else 1
    return names


def _snake_case(name):
    """`SeparableConv2D` as `separable_conv2d`."""
    return re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()
