"""The command line: `main(EXPERIMENT)` for the experiment files, `command()` for `cifar-keras`.

TensorFlow is imported after `runtime.setup`, by what needs it; `--help`, `list`, `collate` and `compare` never do.
"""

import argparse
import dataclasses
import functools
import itertools
import os
import signal
import sys
import traceback

from cifar_keras.config import CifarKerasError
from cifar_keras.options import Options, add_options, positive
from cifar_keras.utils import runtime
from cifar_keras.utils.paths import PROJECT
from cifar_keras.utils.text import printable

GOES_ON = "the same command, without `--fresh`, goes on after the last finished epoch"
MODEL = "a {} file, a run id, or an experiment (its newest model)"
ANY_MODEL, KERAS_MODEL = MODEL.format(".keras, .h5, .onnx or .tflite"), MODEL.format(".keras or .h5")
SIDE = "side of the images, for a model that takes any size"
EXPORTS = ("onnx", "onnx-int8", "litert", "litert-int8")


def main(experiment, arguments=None):
    """Runs an experiment file: parses the command line, then one run, or a process for each variant and seed.

    Args:
        experiment: `config.Experiment`.
        arguments: list of strings; default `sys.argv[1:]`.
    Raises: SystemExit with the exit code (docs/usage.md).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    document = sys.modules["__main__"].__doc__ or ""
    parser = argparse.ArgumentParser(
        prog=f"{experiment.key}.py",
        description=document,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser)
    options = Options(**vars(parser.parse_args(arguments)))
    default = "best" if "best" in experiment.variants else "all"
    variant = options.variant or default
    if variant not in (*experiment.variants, "all"):
        choices = ", ".join((*experiment.variants, "all"))
        parser.error(f"argument --variant: invalid choice: {variant!r} (choose from {choices})")
    variants = tuple(experiment.variants) if variant == "all" else (variant,)
    if options.tables:
        sys.exit(guarded(lambda: tables(experiment, options), verbose=options.verbose))
    if len(variants) * len(options.seed) > 1:
        sys.exit(
            guarded(lambda: each(experiment, arguments, variants=variants, seeds=options.seed), verbose=options.verbose)
        )
    options = dataclasses.replace(options, variant=variants[0], seed=options.seed[0])
    sys.exit(guarded(lambda: one(experiment, options), verbose=options.verbose))


def one(experiment, options):
    """One run in this process."""
    runtime.setup(verbose=options.verbose)
    from cifar_keras import runner

    runner.run(experiment, options)
    return 0


def tables(experiment, options):
    """Derives the experiment's own table and figure from the records, where it has any."""
    from cifar_keras import results
    from cifar_keras.report import summaries

    for path in summaries.write(experiment, results.read(options.root), options.root):
        print(path)
    return 0


def each(experiment, arguments, *, variants, seeds):
    """A process for each variant and seed, since memory of a trained model is not given back within one."""
    from cifar_keras.commands import study

    file = PROJECT / "experiments" / f"{experiment.key}.py"
    jobs = [
        (experiment.key, f"{variant}, seed {seed}", file, [*arguments, "--variant", variant, "--seed", str(seed)])
        for variant, seed in itertools.product(variants, seeds)
    ]
    return study.combined(study.series("runs", jobs, plan=[1] * len(jobs)))


def guarded(function, *, verbose=False, goes_on=True):
    """Calls `function` and turns what it raises into a sentence on stderr and an exit code.

    Args:
        function: takes nothing, returns an exit code.
        verbose: also print where an unexpected error came from.
        goes_on: whether the same command would continue where a signal ended it.
    """
    advice = f"; {GOES_ON}" if goes_on else ""
    signal.signal(signal.SIGTERM, functools.partial(_terminated, advice))
    try:
        return function()
    except CifarKerasError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\nstopped{advice}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if verbose:
            traceback.print_exc()
        hint = "" if verbose else " `--verbose` shows where."
        print(f"error: unexpected {type(error).__name__}: {printable(error)}.{hint}", file=sys.stderr)
        return 3


def _terminated(advice, number, _):
    print(f"\nterminated{advice}", file=sys.stderr)
    sys.exit(128 + number)


VERBS = "list|run|study|collate|compare|explain|report|predict|evaluate|inspect|export|doctor"
FORMATS = ("text", "csv", "markdown")


def command(arguments=None):
    """`cifar-keras VERB`, one of `VERBS`, the same as `python -m cifar_keras`.

    Raises: SystemExit with the exit code.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options, rest = _parser().parse_known_args(arguments)
    if rest and options.verb != "run":
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    told = {"verbose": getattr(options, "verbose", False), "goes_on": options.verb in ("run", "study")}
    sys.exit(guarded(lambda: _dispatch(options, arguments[1:], rest), **told))


def _parser():
    parser = argparse.ArgumentParser(
        prog="cifar-keras", description=__import__("cifar_keras").__doc__, allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar=VERBS)

    def verb(name, text):
        return verbs.add_parser(name, help=text, allow_abbrev=False)

    add_options(verb("list", "experiments with their question and last result"), only=("root",))
    one_of_them = verb("run", "one experiment: `cifar-keras run exp3 --budget quick`")
    one_of_them.add_argument(
        "name", metavar="NAME", help="exp3, 3 or exp3_finetune; what follows goes to the experiment"
    )
    add_options(verb("study", "the four experiments, a process each, then the table"))
    collate = verb("collate", "the table of all results")
    collate.add_argument("--format", choices=FORMATS, default="text", help="default text")
    collate.add_argument(
        "--write", action="store_true", help="refresh README.md, docs/results.md and the experiments' docstrings"
    )
    add_options(collate, only=("root",))
    compare = verb("compare", "is it better? results files against the first of them, with intervals")
    compare.add_argument("files", nargs="+", metavar="RESULTS.CSV", help="two or more; one alone shows its intervals")
    compare.add_argument("--format", choices=FORMATS, default="text", help="default text")
    explain = verb("explain", "where a model fails, what it looks at, how far it can be trusted")
    named = "a run id, an experiment (its newest run), or a saved model (one of no run needs --dataset)"
    explain.add_argument("name", metavar="RUN", help=named)
    explain.add_argument("--layer", metavar="NAME", help="of Grad-CAM (default: the last one with places)")
    explain.add_argument("--input-scaling", metavar="NAME", help="as for predict")
    explain.add_argument("--image-size", type=positive, metavar="PIXELS", help=SIDE)
    _add_names(explain)
    add_options(explain, only=("skip_unreadable",))
    _add_predict(verb("predict", "what a saved model says of images"))
    _add_evaluate(verb("evaluate", "saved models on a labelled dataset, side by side on the same images"))
    inspect = verb("inspect", "what a saved model is: layers, input, classes, provenance, size")
    inspect.add_argument("model", metavar="MODEL", help=ANY_MODEL)
    _add_names(inspect, weights=True)
    add_options(inspect, only=("root", "verbose"))
    export = verb("export", "a saved model as ONNX or LiteRT, also with 8-bit integers, checked on validation images")
    export.add_argument("model", metavar="MODEL", help=KERAS_MODEL)
    _add_names(export, weights=True)
    export.add_argument("--to", required=True, choices=EXPORTS, help="the format")
    export.add_argument("--output", metavar="FILE", help="default: beside the model")
    export.add_argument("--input-scaling", metavar="NAME", help="as for predict")
    export.add_argument("--image-size", type=positive, metavar="PIXELS", help=SIDE)
    checked = "the images that it is checked on, as for an experiment (default: those the model was trained on)"
    export.add_argument("--dataset", metavar="NAME|DIR", help=checked)
    add_options(export, only=("data_dir", "skip_unreadable", "root", "verbose"))
    report = verb("report", "the study on one page, results/report/index.html, or one run")
    report.add_argument("name", nargs="?", metavar="RUN", help="as for explain; its page alone (default: the study)")
    for of_runs in (explain, report):
        of_runs.add_argument(
            "--dataset", metavar="NAME|DIR", help="the images; needed for runs on a folder, and for models of no run"
        )
        add_options(of_runs, only=("data_dir", "root", "verbose"))
    doctor = verb("doctor", "what this machine has, what is missing, what to do about it")
    doctor.add_argument("--json", action="store_true", help="for programs")
    add_options(doctor, only=("root", "data_dir"))
    return parser


def _add_names(parser, *, weights=False):
    if weights:
        parser.add_argument("weights", nargs="?", metavar="WEIGHTS.h5", help="of a MODEL that is a .json")
    names = "of the outputs, in their order: a,b,c or a file with one name a line"
    parser.add_argument("--class-names", metavar="NAMES|FILE", help=names)


def _add_predict(parser):
    parser.add_argument("model", metavar="MODEL", help=f"{ANY_MODEL}; or a .json and its weights, MODEL.json FILE.h5")
    _add_names(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, patterns; - for standard input")
    parser.add_argument("--top", type=positive, default=3, metavar="K", help="classes named for an image (default 3)")
    form = parser.add_mutually_exclusive_group()
    for name, text in (("json", "an object a line"), ("csv", "a row a line")):
        form.add_argument(f"--{name}", action="store_const", const=name, dest="form", default="table", help=text)
    parser.add_argument("--labels-from-folders", action="store_true", help="also accuracy and confusion matrix")
    parser.add_argument(
        "--gradcam", metavar="DIR", help="write what speaks for the predicted class, a picture an image"
    )
    text = "of the pixels, for models from elsewhere: raw ([0, 255], the default), unit, half, zscore, torch or caffe"
    parser.add_argument("--input-scaling", metavar="NAME", help=text)
    parser.add_argument("--image-size", type=positive, metavar="PIXELS", help=SIDE)
    add_options(parser, only=("root", "verbose"))


def _add_evaluate(parser):
    models = f"{ANY_MODEL}, or a .json followed by its weights; others are compared with the first"
    parser.add_argument("models", nargs="+", metavar="MODEL", help=models)
    images = "as for an experiment (default: what the first model was trained on, where that has a name)"
    parser.add_argument("--dataset", metavar="NAME|DIR", help=images)
    parser.add_argument("--split", choices=("test", "val", "train"), default="test", help="default test")
    parser.add_argument("--limit", type=positive, metavar="N", help="most images; every class keeps its share")
    scaling = "as for predict (default: of a model that does not state it, what fits best on val)"
    parser.add_argument("--input-scaling", metavar="NAME", help=scaling)
    parser.add_argument("--image-size", type=positive, metavar="PIXELS", help=f"{SIDE} (default: the dataset's)")
    _add_names(parser)
    views = "also the accuracy of the mean over six views of each image, mirrored and shifted"
    parser.add_argument("--test-time-augmentation", action="store_true", help=views)
    parser.add_argument("--json", action="store_true", help="one document on standard output")
    parser.add_argument("--predictions", metavar="FILE", help="write all probabilities to this .npz")
    figure = "the confusion matrix of a single model (default: results/evaluate/)"
    parser.add_argument("--figure", metavar="FILE.png", help=figure)
    add_options(parser, only=("classes", "data_dir", "skip_unreadable", "root", "verbose"))


def _evaluate(options):
    runtime.setup(verbose=options.verbose)
    from cifar_keras.commands import evaluate

    asked = evaluate.Asked(
        dataset=options.dataset, data_dir=options.data_dir, classes=options.classes, split=options.split,
        limit=options.limit, image_size=options.image_size, scaling=options.input_scaling,
        class_names=options.class_names, augmented=options.test_time_augmentation,
        skip_unreadable=options.skip_unreadable,
    )  # fmt: skip
    output = {"as_json": options.json, "predictions": options.predictions, "figure": options.figure}
    return evaluate.run(options.models, asked, root=options.root, **output)


def _dispatch(options, arguments, rest):
    if options.verb == "doctor":  # first: it shall run where packages that the others need are broken
        from cifar_keras.commands import doctor

        return doctor.run(root=options.root, data_dir=options.data_dir, as_json=options.json)
    from cifar_keras.commands import study

    if options.verb == "list":
        return study.list_experiments(options.root)
    if options.verb == "run":
        return study.run(options.name, rest)
    if options.verb == "study":
        return study.study(arguments, root=options.root, budget=options.budget)
    if options.verb == "explain":
        runtime.setup(verbose=options.verbose)
        from cifar_keras.explain import analyse

        where = {"root": options.root, "dataset": options.dataset, "data_dir": options.data_dir}
        loading = {name: getattr(options, name) for name in ("image_size", "class_names")}
        loading |= {"scaling": options.input_scaling, "skip_unreadable": options.skip_unreadable or None}
        analyse.explain(options.name, layer=options.layer, **where, **loading)
        return 0
    if options.verb == "predict":
        runtime.setup(verbose=options.verbose)
        from cifar_keras.commands import predict

        return predict.run(
            options.model, options.images, root=options.root, form=options.form, top=options.top,
            labelled=options.labels_from_folders, gradcam_folder=options.gradcam, scaling=options.input_scaling,
            image_size=options.image_size, class_names=options.class_names,
        )  # fmt: skip
    if options.verb == "evaluate":
        return _evaluate(options)
    if options.verb == "inspect":
        runtime.setup(verbose=options.verbose)
        from cifar_keras.commands import predict
        from cifar_keras.saved import find, formats, inspect_model

        model, weights = find.single(options.model, options.weights)
        network = formats.open_network(find.find_model(model, root=options.root), weights)
        print(inspect_model.text(network, class_names=options.class_names))
        return 0
    if options.verb == "export":
        runtime.setup(verbose=options.verbose)
        from cifar_keras.commands import predict
        from cifar_keras.saved import export, find, inference

        model, weights = find.single(options.model, options.weights)
        told = {"scaling": options.input_scaling, "image_size": options.image_size, "class_names": options.class_names}
        classifier = inference.load(find.find_model(model, root=options.root), weights=weights, **told)
        inference.print_assumptions(classifier)
        where = {name: getattr(options, name) for name in ("dataset", "data_dir", "skip_unreadable", "verbose")}
        print(*export.export(classifier, options.to, options.output, **where), sep="\n")
        return 0
    if options.verb == "report":
        runtime.setup(verbose=options.verbose)
        return study.report(options.root, name=options.name, dataset=options.dataset, data_dir=options.data_dir)
    if options.verb == "compare":
        from cifar_keras.report import comparison

        return comparison.run(options.files, fmt=options.format)
    return study.collate(options.root, fmt=options.format, write=options.write)
