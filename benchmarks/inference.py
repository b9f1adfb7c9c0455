"""How fast is a saved model in each format, at batch 1 and 64, how large, and what does int8 cost?

Run: python benchmarks/inference.py [--full]
Keras is the compiled call of the loaded model, without the overhead of `predict`. PyTorch is the same network in eager
mode, in the faster of two memory layouts. Weights are random; this does not change the time. The formats take turns
in windows of calls; p99 is that of single calls. Accuracy is measured on the scratch CNN that `make demo` leaves.
"""

import tempfile
from pathlib import Path

import measure
import numpy as np
from measure import Implementation, Turn, judged, measured, ratio_of, row

from cifar_keras.utils.paths import PROJECT

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
            lines += timed(name, files, count=1, rounds=10 if full else 3, lead=20, calls=50)
            lines += timed(name, files, count=MANY, rounds=5 if full else 3, lead=1, calls=2)
    return lines + kept_accuracy(PROJECT / "demo")


def written(name, folder):
    """The study's model with random weights in every format: paths by format, and why others are missing."""
    from implementations import keras_model, noise

    from cifar_keras.config import CifarKerasError
    from cifar_keras.saved import artifacts, export, inference
    from cifar_keras.utils.paths import Paths

    _, model, _ = keras_model(name)
    random = np.random.default_rng(0)  # kernels that begin as the identity would be stored once, or as zeros
    model.set_weights([weight + random.normal(0, 0.01, weight.shape) for weight in model.get_weights()])
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
        except CifarKerasError as error:
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


def timed(name, files, *, count, rounds, lead, calls):
    """The rows of one batch size: latency of a call, or images a second.

    Args:
        name: of the model.
        files: its path in every format.
        count: images in a batch.
        rounds: windows of each implementation.
        lead: calls before a window, which fill the caches again.
        calls: in a window.
    """
    commands = {to: ("serve", str(path), str(count)) for to, path in files.items()}
    if with_torch := measure.installed("torch"):
        commands |= {f"{PYTORCH} {one}": ("torch_predict", name, one, str(count)) for one in LAYOUTS}
    turns = {}
    try:
        for to, command in commands.items():
            turns[to] = Turn(Implementation(command, images=count), str(count))
        windows = measure.rounds_of(turns, rounds=rounds, of="times", lead=lead, steps=calls)
        failures = {to: turn.implementation.failure for to, turn in turns.items()}
    finally:
        for turn in turns.values():
            turn.implementation.close()
    title = f"batch {count}, {name}"
    speeds = {to: [count * calls / sum(times) for times in found] for to, found in windows.items()}
    for to, found in windows.items():
        yield (
            latency(title, to, found, failures[to])
            if count == 1
            else measured(title, to, speeds[to], note=failures[to])
        )
    eager = max(
        (to for to in turns if to.startswith(PYTORCH) and speeds[to]),
        default=None,
        key=lambda to: np.median(speeds[to]),
    )
    if count == 1:
        for other in filter(None, (KERAS, eager)):
            yield against(title, windows, other)
    if not with_torch:
        yield row(title, PYTORCH, note=measure.WITHOUT_TORCH)


def latency(title, implementation, windows, failure):
    """The row of single calls."""
    if not windows:
        return row(title, implementation, note=failure)
    milliseconds = 1000 * np.concatenate(windows)
    note = f"median of {len(milliseconds)} calls; p99 {measure.cell(float(np.quantile(milliseconds, 0.99)))} ms"
    return row(title, implementation, float(np.median(milliseconds)), "ms", note=note)


def against(title, windows, other):
    """The row that compares onnxruntime's latency with another implementation's."""
    ratio = ratio_of(*(list(map(np.median, windows.get(to, ()))) for to in (ONNX, other)))
    judged = {"ratio": ratio, "target": f"at most 1 x {other}", "met": None if ratio is None else bool(ratio <= 1)}
    return row(title, f"latency, {ONNX}", **judged)


def kept_accuracy(root):
    """What int8 does to the accuracy of the newest run of the scratch CNN below a root, on its validation images."""
    from cifar_keras.config import CifarKerasError
    from cifar_keras.saved import export, inference

    found = [paths for record, paths in measure.runs_on("shapes", root) if record["model"] == NAMES[0]]
    if not found:
        return [row("accuracy", root.name, note="not measured: no run of it there; `make demo` leaves one")]
    classifier, lines = inference.load(found[-1].keras), []
    calibration, images, labels = export.real_images(classifier, "shapes", None)
    for to, form in export.FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                export.convert(classifier, to, path := Path(folder) / f"a{form.ending}", calibration)
                check = export.compared(classifier, inference.load(path), images, labels)
            except CifarKerasError as error:
                lines.append(row("accuracy", to, note=f"not measured: {error}"))
                continue
        target = {"target": "at most 1 point lost", "met": check.lost <= 0.01}
        lines.append(row("accuracy", to, 100 * check.accuracy[0], "%", **target, note=str(check)))
    return lines


if __name__ == "__main__":
    measure.main(__doc__, rows)
