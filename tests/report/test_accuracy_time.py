"""The figure of accuracy against training time."""

import pytest
from helpers import record
from matplotlib.figure import Figure

from cifar_keras.report import accuracy_time


def official(**changes):
    return record(dataset="CIFAR-10", cpu_seconds=2400.0, cores=2, backbone="airnet") | changes


def test_a_row_stands_at_its_processor_time_by_core_and_cached_features_count():
    runs = [official(seed=seed, cpu_seconds=used, cached_seconds=100.0) for seed, used in enumerate((2400.0, 3600.0))]
    ((group, seconds),) = accuracy_time.rows(runs)
    assert len(group.runs) == 2 and seconds == 1500 + 100


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "CIFAR-10 (JPEG)"},
        {"cpu_seconds": None},
        {"cores": None},
        {"budget": "quick"},
        {"weights": "exp3-1a2b3c"},
    ],
)
def test_what_is_no_result_on_the_official_images_or_has_no_time_is_left_out(changes, tmp_path):
    assert accuracy_time.rows([official(**changes)]) == []
    accuracy_time.draw([official(**changes)], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_every_row_is_named_with_its_accuracy_and_views_are_hollow(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: shown.append(figure))
    runs = [official(tta_accuracy=0.912), official(experiment="exp1_frozen", test_accuracy=0.514, cpu_seconds=90.0)]
    accuracy_time.draw(runs, tmp_path / "a.png")
    (panel,) = shown[0].axes
    texts = [text.get_text() for text in panel.get_legend().get_texts()]
    assert texts == ["exp1 best: 51.4%\nairnet", "exp4 best: 89.6%\nairnet", "hollow: mean over six views"]
    drawn = {(line.get_xdata()[0], line.get_ydata()[0]) for line in panel.get_lines() if len(line.get_xdata()) == 1}
    assert {(45.0, 0.514), (1200.0, 0.896), (1200.0, 0.912)} <= drawn
