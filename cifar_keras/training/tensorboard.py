"""`--track tensorboard`: writes a run's curves, configuration, result and pictures as event files.

Keras' own TensorBoard callback knows only the epochs of its process, so a resumed run would show some epochs twice or
not at all. Here, every process empties the run's folder and rewrites the history so far.
"""

import contextlib
import importlib.util
import json
import shutil
from pathlib import Path

import keras

from cifar_keras.config import ConfigError, RunFailedError

REQUIREMENT = "tensorboard>=2.21,<2.22"  # as in pyproject.toml

# Writer -> tag -> name in the history. Equal tags share a chart; the names are those of keras.callbacks.TensorBoard.
CURVES = {
    "train": {
        "epoch_loss": "loss",
        "epoch_accuracy": "accuracy",
        "epoch_learning_rate": "learning_rate",
        "epoch_seconds": "seconds",
    },
    "validation": {"epoch_loss": "val_loss", "epoch_accuracy": "val_accuracy"},
}


def require(kind):
    """Checks, before the data are loaded, that runs can be tracked in this way: 'tensorboard', or None for not at all.

    Raises: ConfigError if the package is missing.
    """
    if kind and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "`--track tensorboard` needs the tensorboard package. Received: not installed. "
            f"`pip install '{REQUIREMENT}'` installs it."
        )


def tracker(kind, *, folder, config):
    """Returns an object that follows a run from `start` to `finish`. Nothing is written before `start`.

    Args:
        kind: 'tensorboard', or None for an object that does nothing; see `require`.
        folder: the run's own, for event files only: it is emptied at the start.
        config: `config.RunConfig`.
    """
    return TensorBoard(folder, config) if kind else Tracker()


class Tracker:
    """Tracks nothing."""

    def start(self, progress):
        """Call it once per process, before training.

        Args:
            progress: `train.Progress`, with the epochs of earlier processes in its history.
        Returns: the callbacks for every `fit` of the run; they must follow the one that adds to the history.
        """
        return []

    def finish(self, record, images):
        """Call it once, when the run has finished.

        Args:
            record: the run's record.
            images: PNG files by name.
        """


class TensorBoard(Tracker):
    """Writes event files: the curves to `train/` and `validation/`, everything else to the folder itself."""

    def __init__(self, folder, config):
        self.folder = Path(folder)
        self.config = config
        self.written = 0  # epochs of the history

    def start(self, progress):
        import tensorflow as tf

        self.progress = progress
        with self._writing():
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)  # its error messages are clearer than TensorFlow's
            names = {"run": self.folder, **{name: self.folder / name for name in CURVES}}
            self.writers = {name: tf.summary.create_file_writer(str(place)) for name, place in names.items()}
            with self.writers["run"].as_default(step=0):
                identity = json.dumps(json.loads(self.config.identity), indent=1)
                tf.summary.text("configuration", f"```json\n{identity}\n```")
        self.catch_up()
        return [keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: self.catch_up())]

    def catch_up(self):
        """Writes the epochs that are in the history but not yet in the files. A later kill loses none of them."""
        import tensorflow as tf

        history = self.progress.history
        with self._writing():
            for row in range(self.written, len(history["epoch"])):
                for name, curves in CURVES.items():
                    with self.writers[name].as_default(step=history["epoch"][row]):  # leaving it flushes
                        for tag, key in curves.items():
                            tf.summary.scalar(tag, history[key][row])
        self.written = len(history["epoch"])

    def finish(self, record, images):
        import tensorflow as tf

        pictures = {name: tf.io.decode_png(Path(path).read_bytes(), channels=3) for name, path in images.items()}
        with self._writing(), self.writers["run"].as_default(step=record["best_epoch"]):
            tf.summary.scalar("test_accuracy", record["test_accuracy"])
            for name, picture in pictures.items():
                tf.summary.image(name, picture[None])
            for writer in self.writers.values():
                writer.close()

    @contextlib.contextmanager
    def _writing(self):
        """Raises RunFailedError, in one sentence, if event files can't be written."""
        import tensorflow as tf

        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            # TensorFlow's text: {{node that failed}} what happened [Op:Name] name:
            happened = str(error).partition("\n")[0].rpartition("}} ")[2].partition(" [Op:")[0]
            why = getattr(error, "strerror", None) or happened
            raise RunFailedError(
                f"Could not write the event files in {self.folder}: {why}. Free some space, choose a folder that can "
                "be written to (`--root DIR`), or leave out `--track`; the same command then continues."
            ) from error
