"""How fast is a saved model in each format, at batch 1 and 64, how large, and what does int8 cost?

Run: python benchmarks/inference.py [--full]
Keras is the compiled call of the loaded model, without what `predict` adds; PyTorch is the equal network in eager mode,
the faster of two memory layouts. Weights are random: they cost the same time. The formats take turns call by call, so
that a latency's p99 is that of single calls. Accuracy is that of the run of the scratch CNN that `make demo` leaves.
"""

import tempfile
from pathlib import Path

import measure
import numpy as np
from measure import Side, Turn, judged, ratio_of, row

from cifar_keras.paths import PROJECT

LAYOUTS = measure.LAYOUTS[:2]
NAMES = ("scratch_cnn", "resnet50_finetune", "resnet50_augment_224")
KERAS, ONNX, PYTORCH = "keras", "onnx", "PyTorch"
MANY = 64
CALIBRATED = 32  # images of noise: ranges cost no time


def rows(full):
    """The scratch CNN; in the full form every size of model."""
    lines = []
    for name in NAMES if full else NAMES[:1]:
        with tempfile.TemporaryDirectory() as folder:
            files, notes = written(name, Path(folder))
            lines += sizes(name, files, notes)
            for count in (1, MANY):
                calls = (300 if full else 60) if count == 1 else (10 if full else 3)
                lines += timed(name, files, count=count, calls=calls)
    return lines + kept_accuracy(PROJECT / "demo")


def written(name, folder):
    """The study's model with random weights in every format: paths by format, and why others are missing."""
    from sides import keras_model, noise

    from cifar_keras import artifacts, export, inference
    from cifar_keras.config import ConfigError
    from cifar_keras.paths import Paths

    _, model, _ = keras_model(name)
    random = np.random.default_rng(0)  # or kernels that begin as the identity would be stored once
    model.set_weights([weight + random.uniform(0, 1e-3, weight.shape) for weight in model.get_weights()])
    paths = Paths(folder, "model", "model")
    note = {"class_names": list("abcdefghij")}
    artifacts.save(artifacts.for_inference(model), paths, provenance=note, history={})
    classifier, files, notes = inference.load(paths.keras), {KERAS: paths.keras}, {}
    images = noise(CALIBRATED)[0]
    for to, form in export.FORMATS.items():
        path = folder / f"{to}{form.ending}"
        try:
            export.convert(classifier, to, path, images)
            files[to] = path
        except ConfigError as error:
            notes[to] = f"not measured: {error}"
    return files, notes


def sizes(name, files, notes):
    """How large the files are; int8 against the same format's float32."""
    sized = {to: path.stat().st_size / 2**20 for to, path in files.items()}
    for to, mebibytes in sized.items():
        plain = sized.get(to.removesuffix("-int8"))
        against = judged(plain / mebibytes, 3.5, of="smaller than float32") if to.endswith("-int8") else {}
        yield row(f"file, {name}", to, mebibytes, "MiB", **against)
    for to, note in notes.items():
        yield row(f"file, {name}", to, note=note)


def timed(name, files, *, count, calls):
    """The rows of one batch size: latency of a call, and images a second."""
    turns = {to: Turn(Side(("serve", str(path), str(count)), images=count)) for to, path in files.items()}
    if measure.installed("torch"):
        sides = {one: Side(("torch_predict", name, one, str(count)), images=count) for one in LAYOUTS}
        turns |= {f"{PYTORCH} {one}": Turn(side, str(count)) for one, side in sides.items()}
    try:
        speeds = measure.rounds_of(turns, rounds=calls, seconds=0.0, lead=1)
        failures = {to: turn.side.failure for to, turn in turns.items()}
    finally:
        for turn in turns.values():
            turn.side.close()
    found = (to for to in turns if to.startswith(PYTORCH) and speeds[to])
    eager = max(found, default=None, key=lambda to: np.median(speeds[to]))
    title = f"batch {count}, {name}"
    for to, found in speeds.items():
        yield _speed_row(title, to, found, count, failures[to])
    if count == 1 and ONNX in files:
        for other in (KERAS, *([eager] if eager else ())):
            against = judged(ratio_of(speeds[ONNX], speeds[other]), 1.0, of=f"{other}, in calls a second")
            yield row(title, f"{ONNX} against {other}", **against)
    if not eager:
        yield row(title, PYTORCH, note=measure.WITHOUT_TORCH)


def _speed_row(title, side, speeds, count, failure):
    if not speeds:
        return row(title, side, note=failure or "not measured")
    if count > 1:
        return measure.measured(title, side, speeds)
    milliseconds = 1000 * count / np.asarray(speeds)
    note = f"median of {len(speeds)} calls; p99 {measure.cell(float(np.quantile(milliseconds, 0.99)))} ms"
    return row(title, side, float(np.median(milliseconds)), "ms", note=note)


def kept_accuracy(root):
    """What int8 does to the accuracy of the newest run of the scratch CNN below a root, on its validation images."""
    from cifar_keras import export, inference
    from cifar_keras.config import CifarKerasError

    found = [paths for record, paths in measure.runs_on("shapes", root) if record["model"] == NAMES[0]]
    if not found:
        return [row("accuracy", root.name, note="not measured: no run of it there; `make demo` leaves one")]
    classifier, lines = inference.load(found[-1].keras), []
    for to, form in export.FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                _, check = export.export(classifier, to, Path(folder) / f"a{form.ending}", dataset="shapes")
                lost = 100 * (check.accuracy[1] - check.accuracy[0])
                target = {"target": "at most 1 point lost", "met": lost <= 1}
                lines.append(row("accuracy", to, 100 * check.accuracy[0], "%", **target, note=str(check)))
            except CifarKerasError as error:
                lines.append(row("accuracy", to, note=f"not measured: {error}"))
    return lines


if __name__ == "__main__":
    measure.main(__doc__, rows)
