"""Where files are. `stem` alone makes the names of runs, and nothing ever parses one."""

import os
from dataclasses import dataclass
from pathlib import Path

StrPath = str | os.PathLike[str]


def checkout(file: StrPath = __file__) -> Path | None:
    """The checkout that this file belongs to, which holds `experiments/` and `pyproject.toml`; None if installed."""
    folder = Path(file).resolve().parents[2]
    return folder if (folder / "experiments").is_dir() and (folder / "pyproject.toml").is_file() else None


CHECKOUT = checkout()
# Holds experiments/ and, by default, results/. For an installed package it is the current folder.
PROJECT = CHECKOUT or Path()


def keras_cache(kind: str) -> Path:
    """The folder of Keras' 'datasets' or 'models'. Asking Keras itself would load TensorFlow."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / kind


def search_paths(data_dir: StrPath | None, kind: str) -> list[Path]:
    """The folders to search for a published file, in order: `--data-dir`, CIFAR_KERAS_DATA, Keras' cache."""
    given = (data_dir, os.environ.get("CIFAR_KERAS_DATA"))
    return [*(Path(path).expanduser() for path in given if path), keras_cache(kind)]


def suffix(config):
    """How a run differs from `cifar10`, variant `best`, budget `full`, seed 0; empty for that one.

    >>> suffix(...)  # exp4 on the JPEG images, quick, three epochs
    '_cifar10-jpeg_quick_epochs=3'
    """
    parts = (
        config.dataset if config.dataset != "cifar10" else "",
        config.variant if config.variant != "best" else "",
        config.budget if config.budget != "full" else "",
        f"seed{config.seed}" if config.seed else "",
        *(f"{key}={value}" for key, value in sorted(config.overrides.items())),
    )
    return "".join(f"_{part}" for part in parts if part)


def stem(config):
    """The run's name without its start time: `exp4`, `exp4_cifar10-jpeg_quick`."""
    return f"exp{config.number}{suffix(config)}"


@dataclass(frozen=True)
class Paths:
    """Every path that a run writes, below one root."""

    root: Path
    stem: str
    model: str  # `cifar10_model_<N>` and the same suffix

    @classmethod
    def of(cls, config, root):
        """The paths of a resolved `RunConfig` below `root`."""
        return cls(Path(root), stem(config), f"cifar10_model_{config.number}{suffix(config)}")

    @property
    def keras(self):
        return self.root / "model_cp" / f"{self.stem}.model.keras"

    @property
    def resume(self):
        return self.root / "model_cp" / f"{self.stem}.resume"

    @property
    def h5(self):
        return self.root / "Models" / f"{self.model}.h5"

    @property
    def custom_h5(self):
        return self.root / "Models" / f"{self.model}_custom.h5"

    @property
    def architecture(self):
        return self.root / "Models" / f"{self.model}_architecture.json"

    @property
    def history(self):
        return self.root / "Models" / f"{self.model}_history.json"

    def figure(self, kind):
        """The path of one picture of the run, by kind."""
        return self.root / "results" / "figures" / f"{self.stem}_{kind}.png"

    def of_run(self, run_id):
        """The files named after a run id: its record and its predictions."""
        results = self.root / "results"
        return results / "runs" / f"{run_id}.json", results / "predictions" / f"{run_id}.npz"

    @property
    def tracking(self):
        return self.root / "results" / "tensorboard"

    @property
    def csv(self):
        return self.root / "results" / "results.csv"

    def artifacts(self):
        """The files that a run leaves, by what they are."""
        return {
            "checkpoint": self.keras,
            "architecture": self.architecture,
            "complete .h5": self.h5,
            "weights .h5": self.custom_h5,
            "history": self.history,
        }
