"""Distillation: the loss against NumPy, and a teacher that teaches but is no part of the student."""

import keras
import numpy as np
import pytest
from helpers import noise
from scipy.special import log_softmax, softmax

from cifar_keras.training.distil import Student
from cifar_keras.training.optim import CrossEntropy

IMAGES = noise(6).images


def network(seed):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255, dtype="float32")(x)
    x = keras.layers.Conv2D(4, 5, strides=5, name="conv")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="logits")(keras.layers.GlobalAveragePooling2D()(x)))


def student_of(teacher, *, temperature=4.0, share=0.9):
    student = Student.of(network(1), teacher, temperature, share)
    student.compile(keras.optimizers.SGD(0.1), CrossEntropy(), jit_compile=False)
    return student


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.5), (4.0, 0.9), (4.0, 0.0)])
def test_the_loss_is_the_mean_of_both(temperature, share):
    teacher = network(0)
    student = student_of(teacher, temperature=temperature, share=share)
    labels, logits = np.arange(6), np.random.RandomState(0).randn(6, 10).astype("float32")
    theirs = keras.ops.convert_to_numpy(teacher(IMAGES)) / temperature
    apart = np.sum(softmax(theirs, 1) * (log_softmax(theirs, 1) - log_softmax(logits / temperature, 1)), axis=1).mean()
    plain = -log_softmax(logits, 1)[np.arange(6), labels].mean()
    loss = student.compute_loss(IMAGES, labels, logits, training=True)
    assert float(loss) == pytest.approx((1 - share) * plain + share * temperature**2 * apart, rel=1e-4)
    assert float(student.compute_loss(IMAGES, labels, logits, training=False)) == pytest.approx(plain, rel=1e-5)


def test_class_weights_count_in_both_parts():
    student, labels = student_of(network(0)), np.arange(6)
    logits = np.random.RandomState(0).randn(6, 10).astype("float32")

    def loss(**weights):
        return float(student.compute_loss(IMAGES, labels, logits, training=True, **weights))

    assert loss(sample_weight=np.full(6, 2.0, "float32")) == pytest.approx(2 * loss(), rel=1e-5)
    assert loss(sample_weight=np.zeros(6, "float32")) == 0


def test_the_teacher_neither_learns_nor_counts_nor_is_saved(tmp_path):
    teacher = network(0)
    before = teacher.get_weights()
    student = student_of(teacher)
    start = student.get_weights()
    assert len(student.trainable_variables) == 6 and student.count_params() == network(0).count_params()
    student.fit(IMAGES, np.arange(6), epochs=2, verbose=0)
    for a, b in zip(before, teacher.get_weights(), strict=True):  # BatchNorm's statistics too
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(start[0], student.get_weights()[0])
    student.save_weights(tmp_path / "a.weights.h5")
    other = student_of(network(5))
    other.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(other.get_weights()[0], student.get_weights()[0])


def test_a_student_comes_to_answer_like_its_teacher():
    teacher, student = network(0), student_of(network(0), share=1.0)
    images = noise(64, seed=3).images

    def apart():
        return np.abs(teacher.predict(images, verbose=0) - student.predict(images, verbose=0)).mean()

    start = apart()
    student.fit(images, np.zeros(64, int), epochs=60, batch_size=16, verbose=0)
    assert apart() < 0.7 * start
