"""Do the forms of each finished run's model agree? `.keras`, `.h5`, and JSON + `_custom.h5`, in this new process.

Run: python benchmarks/agreement.py [--root DIR] [--dataset NAME|DIR] [--images 256] [--run ID] [--exported]
For every finished run below the root whose data are available, it prints how many test images get the same class from
all forms, the largest difference of probabilities, and the largest difference from the stored float16 predictions.
`--exported` adds one line per format of `cifar-keras export`, converted again and compared with the `.keras`.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from measure import row, runs_on, table

from cifar_keras.config import Limits
from cifar_keras.data import load
from cifar_keras.utils.paths import PROJECT

TITLE = "same class from every saved form"
EXPORTED = "same class as the .keras"


def probabilities(path, images):
    """Class probabilities, float32 `(n, classes)`, of a saved model in any format."""
    from cifar_keras.saved import inference

    classifier = inference.load(path)
    return np.concatenate([classifier.probabilities(np.stack(block)) for block in inference.batched(images, 64)])


def agreement(record, paths, dataset, *, images):
    """`(same class, largest difference between forms, largest difference from what is stored)` of one run."""
    outputs = np.stack([probabilities(path, images) for path in (paths.keras, paths.h5, paths.custom_h5)])
    classes = outputs.argmax(axis=2)
    same = int((classes == classes[0]).all(axis=0).sum())
    own = load(dataset, limits=Limits(**record["config"]["limits"])).test.images[: len(images)]
    with np.load(paths.of_run(record["run_id"])[1]) as file:
        stored = file["probabilities"][: len(images)].astype("float32")
    return same, float(np.ptp(outputs, axis=0).max()), float(np.abs(probabilities(paths.keras, own) - stored).max())


def exported(record, paths, dataset, *, split):
    """A row for each format of `cifar-keras export`."""
    from cifar_keras.config import CifarKerasError
    from cifar_keras.saved import export, inference

    classifier, old = inference.load(paths.keras), probabilities(paths.keras, split.images)
    calibration, _, _ = export.real_images(classifier, dataset, None)
    for to, form in export.FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model{form.ending}"
            try:
                export.convert(classifier, to, path, calibration)
            except CifarKerasError as error:
                yield row(EXPORTED, f"{record['run_id']}, {to}", note=f"not measured: {error}")
                continue
            new, size = probabilities(path, split.images), path.stat().st_size / 2**20
        check = export.check_of(new, old, split.labels)
        same = round(check.agreement * check.images)
        note = (
            f"of {check.images:,}; probabilities differ by {check.difference:.1e}; accuracy {check.accuracy[0]:.2%}, "
            f"of the .keras {check.accuracy[1]:.2%}; {size:.2f} MiB"
        )
        judged = {} if form.int8 else {"target": f"{len(old)} of {len(old)}", "met": same == len(old)}
        yield row(EXPORTED, f"{record['run_id']}, {to}", same, "images", note=note, **judged)


def runs_agreeing(root, dataset, *, count, run=None, formats=False):
    """A row for every finished run on the dataset whose model is still there; with `formats` also one for each."""
    lines = []
    for record, paths in runs_on(dataset, root):
        if run not in (None, record["run_id"]):
            continue
        split = load(dataset).limited(Limits(test=count)).test
        same, between, stored = agreement(record, paths, dataset, images=split.images)
        note = f"probabilities differ by {between:.1e} between forms, by {stored:.1e} from the stored ones"
        judged = {"target": f"{len(split)} of {len(split)}", "met": same == len(split), "note": note}
        lines.append(row(TITLE, record["run_id"], same, "images", **judged))
        lines += exported(record, paths, dataset, split=split) if formats else []
    missing = f"not measured: no such finished run on {dataset} there; `make demo` leaves four below demo/"
    return lines or [row(TITLE, root.name, note=missing)]


def rows(full):
    """The runs that `make demo` leaves."""
    return runs_agreeing(PROJECT / "demo", "shapes", count=256 if full else 64)


def main():
    """Prints one line per run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=PROJECT)
    parser.add_argument("--dataset", default="shapes")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--run", help="the id of one run")
    parser.add_argument("--exported", action="store_true", help="also what `cifar-keras export` writes")
    options = parser.parse_args()
    wanted = {"count": options.images, "run": options.run, "formats": options.exported}
    print(table(runs_agreeing(options.root, options.dataset, **wanted), "plain"))


if __name__ == "__main__":
    main()
