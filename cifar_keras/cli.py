"""The command line: `main(EXPERIMENT)` for the experiment files, `command()` for `cifar-keras`.

Each verb of `cifar-keras` is one function: it adds the options and sets what runs. TensorFlow is imported after
`runtime.setup`, by the verbs that need it; `--help`, `list`, `collate` and `compare` never import it.
"""

import argparse
import dataclasses
import functools
import itertools
import os
import signal
import sys
import traceback

from cifar_keras.config import BUDGETS, CifarKerasError, ConfigError
from cifar_keras.options import Options, add_options, positive, rate, seeds
from cifar_keras.utils import runtime, system
from cifar_keras.utils.text import printable

BROKEN_PIPE = 141  # 128 + SIGPIPE, which Windows lacks
RESUMES = "the same command, without `--fresh`, continues after the last finished epoch"
LOADING = ("scaling", "image_size", "class_names")  # options of `inference.load`
EXPORTS = ("onnx", "onnx-int8", "litert", "litert-float16", "litert-int8")

MODEL = "a {} file, a run id, or an experiment (its newest model)"
ANY_MODEL = MODEL.format(".keras, .h5, .onnx or .tflite")
WEIGHTS_HELP = "the weights, if MODEL is a .json"
RUN = "a run id, an experiment (its newest run), or a saved model"
IMAGES_OF_RUN = "the images; needed for runs on a folder, and for models without a run"
CLASS_NAMES = "the classes in the order of the outputs: a,b,c or a file with one name per line"


def main(experiment, arguments=None):
    """Runs an experiment file: parses the command line, then does one run, or one process per variant and seed.

    Args:
        experiment: `config.Experiment`.
        arguments: list of strings; default `sys.argv[1:]`.
    Raises: SystemExit with the exit code (docs/usage.md).
    """
    system.escape_unknown_characters()
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog=f"{experiment.key}.py",
        description=sys.modules["__main__"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser)
    options = Options(**vars(parser.parse_args(arguments)))
    variant = experiment.current(options.variant or ("best" if "best" in experiment.variants else "all"))
    if variant not in (*experiment.variants, "all"):
        choices = ", ".join((*experiment.variants, "all"))
        parser.error(f"argument --variant: invalid choice: {variant!r} (choose from {choices})")
    variants = tuple(experiment.variants) if variant == "all" else (variant,)
    if options.tables:
        job = functools.partial(tables, experiment, options)
    elif len(variants) * len(options.seed) > 1:
        job = functools.partial(each, experiment, arguments, options, variants=variants)
    else:
        options = dataclasses.replace(options, variant=variants[0], seed=options.seed[0])
        job = functools.partial(one, experiment, options)
    sys.exit(guarded(job, verbose=options.verbose, resumable=True))


def one(experiment, options):
    """Does one run in this process."""
    runtime.setup(verbose=options.verbose)
    from cifar_keras import runner

    runner.run(experiment, options)
    return 0


def tables(experiment, options):
    """Writes the experiment's own table and figure from its records, if it has any."""
    from cifar_keras import results
    from cifar_keras.report import summaries

    for path in summaries.write(experiment, results.read(options.root), options.root):
        print(path)
    return 0


def each(experiment, arguments, options, *, variants):
    """Starts one process per variant and seed: within a process, the memory of a trained model is never freed."""
    from cifar_keras.commands import study

    jobs = []
    for variant, seed in itertools.product(fitting(experiment, options, variants), options.seed):
        own = [*arguments, "--variant", variant, "--seed", str(seed)]
        jobs.append((experiment.key, f"{variant}, seed {seed}", sys.argv[0], own))
    return study.combined(study.series("runs", jobs, plan=[1] * len(jobs)))


def fitting(experiment, options, variants):
    """The variants whose labelled images per class the data have. The others are left out, with a line for each."""
    if len(variants) == 1 or options.budget != "full" or options.limit is not None:
        return variants
    counts = {name: experiment.variants[name].per_class for name in variants}
    if not any(counts.values()):
        return variants
    from cifar_keras.data import load

    dataset, kept = load(options.dataset or BUDGETS["full"].dataset, **options.loading()), []
    for name, count in counts.items():
        try:
            dataset.check_per_class(count or 0)
            kept.append(name)
        except ConfigError as error:
            print(f"{name} is left out. {error}")
    return kept


def guarded(function, *, verbose=False, resumable=False):
    """Calls `function`. If it fails, prints one sentence to stderr and returns the exit code for the failure.

    Args:
        function: takes nothing, returns an exit code.
        verbose: also print the traceback of an unexpected error.
        resumable: whether the same command would continue the work after an interruption.
    """
    advice = f"; {RESUMES}" if resumable else ""
    signal.signal(signal.SIGTERM, functools.partial(_terminated, advice))
    try:
        return function()
    except CifarKerasError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\nstopped{advice}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if verbose:
            traceback.print_exc()
        hint = "" if verbose else " `--verbose` shows where."
        print(f"error: unexpected {type(error).__name__}: {printable(error)}.{hint}", file=sys.stderr)
        return 3


def _terminated(advice, number, _):
    print(f"\nterminated{advice}", file=sys.stderr)
    sys.exit(128 + number)


def command(arguments=None):
    """Runs `cifar-keras VERB ...`, which is also `python -m cifar_keras VERB ...`.

    Raises: SystemExit with the exit code.
    """
    system.escape_unknown_characters()
    arguments = sys.argv[1:] if arguments is None else arguments
    text = "Compares four models on CIFAR-10, and uses, explains and exports saved models."
    parser = argparse.ArgumentParser(prog="cifar-keras", description=text, allow_abbrev=False)
    parser.set_defaults(verbose=False, resumable=False, arguments=arguments[1:])
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for add in VERBS:
        add(verbs)
    options = parser.parse_args(arguments)
    sys.exit(guarded(lambda: options.run(options), verbose=options.verbose, resumable=options.resumable))


def _verb(verbs, run, name, text, **defaults):
    """Adds a verb. `run` takes the parsed options and returns the exit code. Returns the verb's parser."""
    parser = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(run=run, **defaults)
    return parser


def _list(verbs):
    def run(options):
        from cifar_keras.commands import study

        return study.list_experiments(options.root)

    add_options(_verb(verbs, run, "list", "the experiments, with their questions and last results"), only=("root",))


def _run(verbs):
    def run(options):
        from cifar_keras.commands import study

        return study.run(options.name, options.arguments)

    verb = _verb(verbs, run, "run", "one experiment: `cifar-keras run exp3 --budget quick`", resumable=True)
    verb.add_argument("name", metavar="NAME", help="exp3, 3 or exp3_finetune")
    verb.add_argument("arguments", nargs=argparse.REMAINDER, metavar="OPTIONS", help="passed to the experiment")


def _study(verbs):
    def run(options):
        from cifar_keras.commands import study

        return study.study(options.arguments, root=options.root, budget=options.budget)

    text = "the four experiments, each in its own process, then the table"
    add_options(_verb(verbs, run, "study", text, resumable=True))


def _collate(verbs):
    def run(options):
        from cifar_keras.commands import study

        return study.collate(options.root, fmt=options.format, write=options.write)

    verb = _verb(verbs, run, "collate", "the table of all results")
    _add_format(verb)
    text = "also update README.md, docs/results.md and the experiments' docstrings"
    verb.add_argument("--write", action="store_true", help=text)
    add_options(verb, only=("root",))


def _compare(verbs):
    def run(options):
        from cifar_keras.report import comparison

        if not options.published:
            return comparison.run(options.files, fmt=options.format)
        runtime.setup(verbose=options.verbose)
        from cifar_keras.commands import published

        return published.run(options.files, root=options.root, data_dir=options.data_dir, fmt=options.format)

    text = "is it better? compares results files with the first one, with confidence intervals"
    verb = _verb(verbs, run, "compare", text)
    text = "two or more; with only one, shows its intervals"
    verb.add_argument("files", nargs="+", metavar="RESULTS.CSV", help=text)
    text = "runs in place of files (a run id, an experiment), beside 30 published models on CIFAR-10's test images"
    verb.add_argument("--published", action="store_true", help=text)
    add_options(verb, only=("data_dir", "root", "verbose"))
    _add_format(verb)


def _explain(verbs):
    def run(options):
        runtime.setup(verbose=options.verbose)
        from cifar_keras.explain import analyse

        where = _chosen(options, "layer", "root", "dataset", "data_dir")
        loading = {**_chosen(options, *LOADING), "skip_unreadable": options.skip_unreadable or None}
        analyse.explain(options.name, **where, **loading)
        return 0

    verb = _verb(verbs, run, "explain", "where a model fails, what it looks at, how well calibrated it is")
    verb.add_argument("name", metavar="RUN", help=f"{RUN} (needs --dataset if it belongs to no run)")
    text = "layer for Grad-CAM (default: the last one with height and width)"
    verb.add_argument("--layer", metavar="NAME", help=text)
    _add_loading(verb)
    verb.add_argument("--dataset", metavar="NAME|DIR", help=IMAGES_OF_RUN)
    add_options(verb, only=("data_dir", "skip_unreadable", "root", "verbose"))


def _report(verbs):
    def run(options):
        runtime.setup(verbose=options.verbose)
        from cifar_keras.commands import study

        return study.report(options.root, **_chosen(options, "name", "dataset", "data_dir"))

    verb = _verb(verbs, run, "report", "the study, or one run, on one page: results/report/index.html")
    verb.add_argument("name", nargs="?", metavar="RUN", help=f"{RUN} (default: the study)")
    verb.add_argument("--dataset", metavar="NAME|DIR", help=IMAGES_OF_RUN)
    add_options(verb, only=("data_dir", "root", "verbose"))


def _predict(verbs):
    def run(options):
        runtime.setup(verbose=options.verbose)
        from cifar_keras.commands import predict

        asked = _chosen(options, "root", "form", "top", "labelled", "gradcam_folder", *LOADING)
        return predict.run(options.model, options.images, **asked)

    verb = _verb(verbs, run, "predict", "the classes that a saved model predicts for images")
    verb.add_argument("model", metavar="MODEL", help=f"{ANY_MODEL}; or a .json and its weights: MODEL.json WEIGHTS.h5")
    verb.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, patterns; - for standard input")
    verb.add_argument("--top", type=positive, default=3, metavar="K", help="classes shown per image (default 3)")
    form = verb.add_mutually_exclusive_group()
    for name, text in (("json", "one JSON object per line"), ("csv", "one CSV row per line")):
        form.add_argument(f"--{name}", action="store_const", const=name, dest="form", default="table", help=text)
    text = "the name of an image's folder is its class; also print accuracy and the confusion matrix"
    verb.add_argument("--labels-from-folders", action="store_true", dest="labelled", help=text)
    text = "write a picture per image that shows which regions speak for the predicted class"
    verb.add_argument("--gradcam", metavar="DIR", dest="gradcam_folder", help=text)
    _add_loading(verb)
    add_options(verb, only=("root", "verbose"))


def _evaluate(verbs):
    def run(options):
        runtime.setup(verbose=options.verbose)
        from cifar_keras.commands import evaluate

        asked = evaluate.Asked(**_chosen(options, *(field.name for field in dataclasses.fields(evaluate.Asked))))
        return evaluate.run(
            options.models, asked, **_chosen(options, "root", "as_json", "predictions", "figure", "costs")
        )

    verb = _verb(verbs, run, "evaluate", "compares saved models on the same labelled images")
    text = f"{ANY_MODEL}, or a .json followed by its weights; the others are compared with the first"
    verb.add_argument("models", nargs="+", metavar="MODEL", help=text)
    text = "as for an experiment (default: the named dataset that the first model was trained on)"
    verb.add_argument("--dataset", metavar="NAME|DIR", help=text)
    verb.add_argument("--split", choices=("test", "val", "train"), default="test", help="default test")
    verb.add_argument("--limit", type=positive, metavar="N", help="most images; every class keeps its share")
    _add_loading(verb, scaling="the one that fits best on val", size="the dataset's")
    text = "also the accuracy of the mean over six views of each image, mirrored and shifted"
    verb.add_argument("--test-time-augmentation", action="store_true", dest="augmented", help=text)
    text = "also size, speed and share of zeros, and a figure of accuracy against size and speed"
    verb.add_argument("--footprint", action="store_true", dest="costs", help=text)
    verb.add_argument("--json", action="store_true", dest="as_json", help="print one JSON document")
    verb.add_argument("--predictions", metavar="FILE", help="write all probabilities to this .npz")
    text = "where to draw the confusion matrix of a single model (default: results/evaluate/)"
    verb.add_argument("--figure", metavar="FILE.png", help=text)
    add_options(verb, only=("classes", "data_dir", "skip_unreadable", "root", "verbose"))


def _inspect(verbs):
    def run(options):
        runtime.setup(verbose=options.verbose)
        from cifar_keras.saved import find, formats, inspect_model

        network = formats.open_network(find.find_model(options.model, root=options.root), options.weights)
        print(inspect_model.text(network, class_names=options.class_names))
        return 0

    verb = _verb(verbs, run, "inspect", "a saved model's layers, input, classes, provenance and size")
    verb.add_argument("model", metavar="MODEL", help=ANY_MODEL)
    verb.add_argument("weights", nargs="?", metavar="WEIGHTS.h5", help=WEIGHTS_HELP)
    verb.add_argument("--class-names", metavar="NAMES|FILE", help=CLASS_NAMES)
    add_options(verb, only=("root", "verbose"))


def _export(verbs):
    def run(options):
        runtime.setup(verbose=options.verbose)
        from cifar_keras.saved import export, find, inference

        path = find.find_model(options.model, root=options.root)
        classifier = inference.load(path, **_chosen(options, "weights", *LOADING))
        inference.print_assumptions(classifier)
        where = _chosen(options, "dataset", "data_dir", "skip_unreadable", "verbose")
        print(*export.export(classifier, options.to, options.output, **where), sep="\n")
        return 0

    verb = _verb(verbs, run, "export", "writes a saved model as ONNX or LiteRT, and checks it on validation images")
    verb.add_argument("model", metavar="MODEL", help=MODEL.format(".keras or .h5"))
    verb.add_argument("weights", nargs="?", metavar="WEIGHTS.h5", help=WEIGHTS_HELP)
    verb.add_argument("--to", required=True, choices=EXPORTS, help="the format; int8: with 8-bit integers")
    verb.add_argument("--output", metavar="FILE", help="default: beside the model")
    _add_loading(verb)
    text = "the validation images, as for an experiment (default: those of the training dataset)"
    verb.add_argument("--dataset", metavar="NAME|DIR", help=text)
    add_options(verb, only=("data_dir", "skip_unreadable", "root", "verbose"))


def _doctor(verbs):
    def run(options):  # imports no other command: it must run even if packages that they need are broken
        from cifar_keras.commands import doctor

        return doctor.run(**_chosen(options, "root", "data_dir", "measure", "as_json"))

    verb = _verb(verbs, run, "doctor", "what this machine has, what is missing, how to fix it")
    verb.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
    verb.add_argument("--measure", action="store_true", help="also time training in float32 and bfloat16 (a minute)")
    add_options(verb, only=("root", "data_dir"))


def _find_lr(verbs):
    taken = (
        *("variant", "budget", "dataset", "classes", "data_dir", "image_size", "weights", "backbone", "pixels"),
        *("batch_size", "class_weights", "skip_unreadable", "seed", "limit", "precision", "deterministic", "root"),
        "verbose",
    )

    def run(options):
        runtime.setup(verbose=options.verbose)
        from cifar_keras.commands import find_lr

        asked = find_lr.Asked(**_chosen(options, "first", "last", "steps", "stage"))
        return find_lr.run(options.name, Options(**_chosen(options, *taken)), asked, out=options.out)

    verb = _verb(verbs, run, "find-lr", "tries ever higher learning rates on a recipe, draws the loss and suggests one")
    verb.add_argument("name", metavar="EXPERIMENT", help="exp3, 3 or exp3_finetune")
    text = "the first rate (default: the recipe's / 10,000)"
    verb.add_argument("--from", type=rate, dest="first", metavar="RATE", help=text)
    verb.add_argument("--to", type=rate, dest="last", metavar="RATE", help="the last rate (default: the recipe's x 30)")
    text = "training steps, with a higher rate in each (default 100)"
    verb.add_argument("--steps", type=positive, default=100, metavar="N", help=text)
    verb.add_argument("--stage", type=positive, metavar="N", help="which of the recipe's stages (default: the last)")
    verb.add_argument("--out", metavar="FILE.png", help="the figure (default: below results/figures/)")
    verb.add_argument("--variant", metavar="NAME", help="the recipe (default: best if there is one, else the first)")
    verb.add_argument("--seed", type=seeds, default=range(1), metavar="N", help="of weights, order and augmentation")
    add_options(verb, only=set(taken) - {"variant", "seed"})


def _augmentations(verbs):
    def run(options):
        runtime.setup(verbose=options.verbose)
        from cifar_keras.commands import augmentations

        where = _chosen(options, "root", "out", "data_dir", "classes", "skip_unreadable")
        return augmentations.run(options.dataset or "cifar10", seed=options.seed[0], **where)

    verb = _verb(verbs, run, "augmentations", "draws what each augmentation does to the same eight images")
    verb.add_argument("--out", metavar="FILE", help="the PNG (default: below results/figures/)")
    add_options(verb, only=("dataset", "data_dir", "classes", "skip_unreadable", "seed", "root", "verbose"))


VERBS = (
    _list, _run, _study, _collate, _compare, _explain, _report, _predict, _evaluate, _inspect, _export, _find_lr,
    _augmentations, _doctor,
)  # fmt: skip


def _add_format(verb):
    verb.add_argument("--format", choices=("text", "csv", "markdown"), default="text", help="default text")


def _add_loading(verb, *, scaling="raw", size="none"):
    """Adds the options of `LOADING`; `scaling` and `size` describe their defaults."""
    text = "how pixels are scaled, if the model does not state it: raw ([0, 255]), unit, half, zscore, torch or caffe"
    verb.add_argument("--input-scaling", metavar="NAME", dest="scaling", help=f"{text} (default: {scaling})")
    text = f"side of the images, for a model that takes any size (default: {size})"
    verb.add_argument("--image-size", type=positive, metavar="PIXELS", help=text)
    verb.add_argument("--class-names", metavar="NAMES|FILE", help=CLASS_NAMES)


def _chosen(options, *names):
    return {name: getattr(options, name) for name in names}
