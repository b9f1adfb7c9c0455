"""Run records and what is derived from them. This package and `report` are the only writers of `results/`."""

from cifar_keras.results.records import (
    COLUMNS,
    finished,
    overrides,
    read,
    read_predictions,
    rebuild,
    title,
    with_derived,
    write,
)

__all__ = ["COLUMNS", "finished", "overrides", "read", "read_predictions", "rebuild", "title", "with_derived", "write"]
