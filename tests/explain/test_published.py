"""A run beside the published models: ranks, corrected tests, shared errors, and which runs may be compared."""

import csv
import json

import numpy as np
import pytest
from scipy import stats

from cifar_keras.cli import command
from cifar_keras.config import ConfigError
from cifar_keras.explain import published as module
from cifar_keras.explain.base import NotApplicable

ANSWERS = module.answers()
VOTES = np.stack(list(ANSWERS.values()))
MAJORITY = np.array([np.bincount(column, minlength=10).argmax() for column in VOTES.T])  # stands for the labels
RIGHT_BY_ALL = np.flatnonzero((VOTES == MAJORITY).all(axis=0))


def one_hot(classes):
    return np.eye(10, dtype="float16")[classes]


def wrong_on(indices):
    """Predictions that are right but for these images."""
    predicted = MAJORITY.copy()
    predicted[indices] = (predicted[indices] + 1) % 10
    return predicted


def test_the_package_holds_what_thirty_models_answered_with_source_and_licence():
    assert VOTES.shape == (30, 10_000) and VOTES.dtype == np.uint8 and VOTES.max() == 9
    assert len(ANSWERS) == 30 and "wrn_28_10" in ANSWERS
    text = module.ANSWERS.with_suffix(".txt").read_text()
    assert "MIT License" in text and "Copyright (c) 2018 modestyachts" in text and "arXiv:1806.00451" in text


def test_ranks_differences_and_corrected_p_values_by_hand():
    ours = np.arange(100) < 80
    right = {"same": ours.copy(), "better": np.arange(100) < 90, "worse": np.arange(100) < 60}
    rows = module.ranked("mine", ours, right)
    assert [(row["rank"], row["model"]) for row in rows] == [(1, "better"), (2, "mine"), (2, "same"), (4, "worse")]
    by = {row["model"]: row for row in rows}
    assert "difference" not in by["mine"] and by["same"]["difference"] == 0
    assert by["better"]["difference"] == pytest.approx(0.1) and by["worse"]["difference"] == pytest.approx(-0.2)
    p = {name: stats.binomtest(0, n).pvalue for name, n in (("better", 10), ("worse", 20))}
    assert by["worse"]["p (McNemar, Holm)"] == pytest.approx(3 * p["worse"])
    assert by["better"]["p (McNemar, Holm)"] == pytest.approx(2 * p["better"])
    assert by["same"]["p (McNemar, Holm)"] == 1


def test_who_shares_errors_by_hand():
    ours = np.array([False, False, False, False, True])
    theirs = np.array([[0, 0, 0, 1, 0], [0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 0]], bool)
    found = module.shared(ours, dict(zip("abcd", theirs, strict=True)))
    assert found == {"all": 1, "most": 1, "some": 1, "none": 1}  # 4, 3, 1 and 0 of four


def test_the_section_marks_the_model_and_shows_what_it_alone_gets_wrong():
    images = np.broadcast_to(np.arange(10_000, dtype="uint8")[:, None, None, None], (10_000, 32, 32, 3))
    alone = RIGHT_BY_ALL[:20]
    section = module.published(MAJORITY, one_hot(wrong_on(alone)), own="mine", images=images, class_names="abcdefghij")
    assert section.numbers["rank"] == 1 and section.numbers["errors"] == 20
    assert section.numbers["errors shared by"] == {"all": 0, "most": 0, "some": 0, "none": 20}
    assert section.numbers["wrong where all published are right"] == alone.tolist()
    assert set(section.figures) == set(section.descriptions) == {"accuracies", "alone"}
    (panel,) = section.figures["accuracies"].axes
    bold = [label.get_text() for label in panel.get_yticklabels() if label.get_fontweight() == "bold"]
    assert bold == ["mine"] and len(panel.get_yticklabels()) == 31
    shown = [axes for axes in section.figures["alone"].axes if axes.images]
    assert len(shown) == module.SHOWN
    assert "mine ranks 1 of 31" in section.sentences[0] and "none 100% (20)" in section.sentences[1]


def test_without_images_there_are_no_pictures():
    section = module.published(MAJORITY, one_hot(wrong_on(RIGHT_BY_ALL[:1])), own="mine")
    assert set(section.figures) == {"accuracies"}


def test_a_part_of_the_test_set_is_not_compared():
    with pytest.raises(NotApplicable, match="all 10,000 test images, not 100"):
        module.published(MAJORITY[:100], one_hot(MAJORITY[:100]), own="mine")


def record(run_id, *, fingerprint=module.FINGERPRINT, images=10_000, minute=0):
    return {
        "run_id": run_id, "utc": f"2026-01-01T00:0{minute}", "status": "finished", "experiment": "exp4_scratch",
        "variant": "best", "dataset": "CIFAR-10", "fingerprint": fingerprint[:12], "test_n": images,
        "config": {"number": 4, "fingerprint": fingerprint},
    }  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An official run with stored predictions, and a newer one on other images."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "none"))
    monkeypatch.delenv("CIFAR_KERAS_DATA", raising=False)
    for kind in ("runs", "predictions"):
        (tmp_path / "results" / kind).mkdir(parents=True)
    for one in (record("exp4_a"), record("exp4_jpeg", fingerprint="ab" * 32, minute=1)):
        (tmp_path / "results" / "runs" / f"{one['run_id']}.json").write_text(json.dumps(one))
    probabilities = one_hot(wrong_on(RIGHT_BY_ALL[:3]))
    np.savez(tmp_path / "results/predictions/exp4_a.npz", labels=MAJORITY, probabilities=probabilities)
    return tmp_path


def compared(root, *arguments):
    with pytest.raises(SystemExit) as ended:
        command(["compare", "--published", "--root", str(root), *arguments])
    return ended.value.code


def test_an_experiments_name_takes_its_newest_run_on_the_official_test_set(root, capsys):
    assert compared(root, "exp4") == 0
    out = capsys.readouterr().out
    assert out.count("\n| ") >= 31 and "exp4_scratch best ranks 1 of 31" in out
    assert "No pictures: CIFAR-10's archive was not found" in out
    assert (root / "results/explain/exp4_a/published_accuracies.png").is_file()


def test_the_table_as_csv(root, capsys):
    assert compared(root, "exp4_a", "--format", "csv") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == 31 and rows[0]["model"] == "exp4_scratch best" and float(rows[0]["accuracy"]) == 0.9997


def test_any_other_test_set_is_refused_with_its_fingerprint(root, capsys):
    assert compared(root, "exp4_jpeg") == 2
    err = capsys.readouterr().err
    assert "official 10,000 test images (fingerprint c462096a029d)" in err and "(abababababab)" in err


def test_a_run_without_predictions_and_a_name_that_is_none_are_refused(root, capsys):
    (root / "results/predictions/exp4_a.npz").unlink()
    assert compared(root, "exp4") == 2
    assert "needs the run's stored predictions" in capsys.readouterr().err
    assert compared(root, "exp11") == 2
    assert "RUN must be a run id" in capsys.readouterr().err


def test_a_limited_test_set_is_refused():
    with pytest.raises(ConfigError, match="on 500 images of CIFAR-10"):
        module.required(record("a", images=500))
