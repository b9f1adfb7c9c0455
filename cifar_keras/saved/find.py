"""Finding a saved model: by its path, a run id, or an experiment (its newest run with a model)."""

from collections.abc import Sequence
from pathlib import Path

from cifar_keras import results
from cifar_keras.config import ConfigError, RunConfig
from cifar_keras.saved import artifacts
from cifar_keras.saved.formats import OPENERS
from cifar_keras.utils.paths import Paths, StrPath

WEIGHTS_ENDINGS = (".h5", ".hdf5", ".keras")  # endings of files with the weights of a `.json`


def find_model(name: str, *, root: StrPath) -> Path:
    """The path of the model that a path, a run id or an experiment names. Raises ConfigError where there is none."""
    path = Path(name)
    if path.suffix in (*OPENERS, ".json") or path.exists():
        return path
    return saved_model(name, root=root)


def saved_model(name: str, *, root: StrPath) -> Path:
    """The path of the saved model of a run, or of an experiment's newest run with a model. Raises ConfigError."""
    missing = []
    for record in matching(name, records := results.finished(root)):
        try:
            return model_of(record, None, Paths.of(RunConfig.restored(record["config"]), Path(root)))
        except ConfigError as error:
            missing.append(error)
    raise missing[0] if missing else _unknown(name, records)


def paired(arguments: Sequence[str]) -> list[tuple[str, str | None]]:
    """Models of a command line: the argument after a `.json` is its weights.

    Args:
        arguments: strings such as `["model.json", "weights.h5", "other.onnx"]`.
    Returns: list of `(model, weights)`; the weights are None for other models than a `.json`.
    Raises: ConfigError for a `.json` without weights.
    """
    pairs, rest = [], list(arguments)
    while rest:
        model, weights = rest.pop(0), None
        if Path(model).suffix == ".json":
            if not rest or Path(rest[0]).suffix not in WEIGHTS_ENDINGS:
                raise ConfigError(
                    f"{model} holds only an architecture and must be followed by its weights, a file that ends in "
                    f"{', '.join(WEIGHTS_ENDINGS)}. Received: {rest[0] if rest else 'nothing more'}."
                )
            weights = rest.pop(0)
        pairs.append((model, weights))
    return pairs


def is_model(name: StrPath) -> bool:
    """Whether a name has the ending of a complete Keras model."""
    return Path(name).suffix in (".keras", ".h5")


def record_of(name, records):
    """The newest record of `matching`. Raises ConfigError where there is none."""
    if (found := next(matching(name, records), None)) is None:
        raise _unknown(name, records)
    return found


def matching(name, records):
    """The records of a run id, an experiment or a saved model's file, the newest first."""
    wanted = _owner(Path(name)) if is_model(name) else name
    for record in reversed(records):
        number = record["config"].get("number")
        if wanted in (record["run_id"], record["experiment"], f"exp{number}", f"{number}"):
            yield record


def _unknown(name, records):
    return ConfigError(
        f"RUN must be a run id, an experiment or a saved model. Received: {name!r}. Runs: {known(records)}."
    )


def known(records):
    """The newest run ids, for messages."""
    return ", ".join(dict.fromkeys(record["run_id"] for record in records[-5:])) or "none has finished below this root"


def _owner(path):
    """The id of the run that a model's file came from, '' for a file from elsewhere."""
    return (artifacts.provenance(path) or {}).get("run_id", "")


def model_of(record, given, paths):
    """The saved model of a run: the file that was given, or its `.keras`, or its complete `.h5`."""
    if given is not None and given.name.endswith("_custom.h5"):
        raise ConfigError(f"RUN must be a complete model. Received: {given}, weights alone. Give {paths.h5.name}.")
    for path in (given,) if given else (paths.keras, paths.h5):
        if path.is_file() and _owner(path) == record["run_id"]:
            return path
    raise ConfigError(
        f"The model of {record['run_id']} must be {paths.keras} or {paths.h5}. Received: no such file, or one of "
        f"another run. Run `python experiments/{record['experiment']}.py` again, or give the path of the saved model."
    )
