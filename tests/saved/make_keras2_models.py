"""Writes models as Keras 2 saved them, and their predictions there for noise in [0, 1]: the files in `keras2/`.

Run, in an environment of its own:  pip install "tensorflow-cpu==2.15.*" "numpy<2"
                                    python tests/saved/make_keras2_models.py tests/saved/keras2 [--full] [--keras]
The names begin with TensorFlow's version. `--full` adds a whole ResNet50 (95 MB), which is not committed; `--keras`
writes the small `.keras` archives of 2.13 to 2.15, and their weights alone, instead of the `.h5`. Weights are random,
seeded, and BatchNorm's statistics are moved from where they start, so that swapping them would show.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

keras, layers = tf.keras, tf.keras.layers
resnet = sys.modules[keras.applications.ResNet50.__module__]  # the builder that is not part of the public names
SIDE, CLASSES, IMAGES = 32, 5, 4


def residual(stacks=((4, 1), (8, 2)), **options):
    """Keras' own ResNet builder with few channels: ResNet50's kinds and names of layers."""

    def stack(x):
        for number, (filters, stride) in enumerate(stacks, start=2):
            x = resnet.stack1(x, filters, 2, stride1=stride, name=f"conv{number}")
        return x

    return resnet.ResNet(
        stack, False, True, "small_resnet", weights=None, classes=CLASSES, input_shape=(SIDE, SIDE, 3), **options
    )


def cnn():
    """Preprocessing by stock layers, every kind of layer whose stored form changed."""
    return keras.Sequential(
        [
            layers.Rescaling(1 / 255, input_shape=(SIDE, SIDE, 3)),
            layers.Normalization(mean=(0.5, 0.4, 0.3), variance=(0.04, 0.05, 0.06)),
            layers.RandomFlip("horizontal"),
            layers.Conv2D(8, 3, padding="same", kernel_initializer="he_normal", kernel_regularizer="l2"),
            layers.BatchNormalization(),
            layers.LeakyReLU(alpha=0.1),
            layers.DepthwiseConv2D(3, activation="relu"),
            layers.SeparableConv2D(8, 3, activation="relu"),
            layers.Conv2DTranspose(4, 3, strides=2),
            layers.MaxPooling2D(4),
            layers.SpatialDropout2D(0.1),
            layers.Flatten(),
            layers.Dense(16, activation="elu", kernel_constraint=keras.constraints.MaxNorm(2.0)),
            layers.Dropout(0.5),
            layers.Dense(CLASSES),
            layers.Activation("softmax"),
        ]
    )


def nested():
    """A backbone as one layer, as transfer learning is often written."""
    backbone = residual(include_top=False, pooling="avg")
    return keras.Sequential([backbone, layers.Dense(CLASSES, activation="softmax")])


def transfer():
    """A backbone called with `training=False` behind augmentation that is a model of its own."""
    augmentation = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)])
    backbone = residual(include_top=False)
    backbone.trainable = False  # which changes the order in which its weights are stored
    x = inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(augmentation(x))
    x = layers.GlobalAveragePooling2D()(backbone(x, training=False))
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(layers.Dropout(0.2)(x)))


def logits():
    """A functional network without a softmax, an adapted Normalization in front."""
    scale = layers.Normalization(name="adapted")
    scale.adapt(images().astype("float32"))
    x = inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(4, 3, activation=tf.nn.relu)(scale(x))
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)])
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def with_lambda():
    """What can't be loaded without running stored code."""
    return keras.Sequential(
        [layers.Lambda(lambda x: x / 255, input_shape=(SIDE, SIDE, 3)), layers.GlobalMaxPooling2D(), layers.Dense(2)]
    )


def with_operator():
    """`preprocess_input` applied to a symbolic tensor: operations of TensorFlow as layers."""
    x = inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.GlobalMaxPooling2D()(keras.applications.resnet50.preprocess_input(x))
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))


def stack():
    """A compiled stack with layers of one kind with and without weights, in 2.13 numbered apart."""
    return keras.Sequential(
        [
            layers.Conv2D(4, 3, activation="relu", input_shape=(SIDE, SIDE, 3)),
            layers.BatchNormalization(),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(scale=False),
            layers.Conv2D(4, 3, activation="relu"),
            layers.DepthwiseConv2D(3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(8, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(8, activation="relu"),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def branches():
    """Residual and parallel branches whose equal layers are made in another order than they are connected in."""
    inputs = keras.Input((SIDE, SIDE, 3))
    late, early = layers.Conv2D(4, 3, padding="same"), layers.Conv2D(4, 3, padding="same")
    x = layers.Conv2D(4, 3, padding="same")(inputs)
    y = layers.BatchNormalization()(early(x))
    x = layers.Add()([x, y, late(layers.ReLU()(x))])
    pooled = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)])
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(pooled))


def backbone():
    """Augmentation in a model of its own, and a small frozen backbone as one layer."""
    augmentation = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandomZoom(0.1)])
    x = entry = keras.Input((SIDE, SIDE, 3))
    for _ in range(2):
        x = layers.Add()([layers.Conv2D(3, 3, padding="same", activation="relu")(x), x])
    small = keras.Model(entry, layers.BatchNormalization()(x), name="small")
    small.trainable = False
    x = inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.GlobalAveragePooling2D()(small(augmentation(x), training=False))
    head = keras.Sequential([layers.Dense(6, activation="relu"), layers.Dense(CLASSES)])
    return keras.Model(inputs, layers.Softmax()(head(x)))


def half():
    """A network trained in 16 bits."""
    keras.mixed_precision.set_global_policy("mixed_float16")
    x = inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.GlobalMaxPooling2D()(layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(x)))
    model = keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", dtype="float32")(x))
    keras.mixed_precision.set_global_policy("float32")
    return model


def deferred():
    """A stack that learned its input's shape from data."""
    model = keras.Sequential([layers.Conv2D(4, 3), layers.GlobalMaxPooling2D(), layers.Dense(CLASSES)])
    model.build((None, SIDE, SIDE, 3))
    return model


def resnet50():
    """The whole network at 32 pixels with a classifier."""
    backbone = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(SIDE, SIDE, 3), pooling="avg")
    return keras.Model(backbone.input, layers.Dense(10, activation="softmax")(backbone.output))


def images():
    """uint8 `(IMAGES, SIDE, SIDE, 3)`."""
    return np.random.RandomState(0).randint(0, 256, (IMAGES, SIDE, SIDE, 3)).astype("uint8")


def shaken(model):
    """The model with biases, scales and statistics away from where they start."""
    random = np.random.RandomState(1)
    for variable in model.weights:
        if variable.dtype.is_floating and len(variable.shape) == 1:
            variable.assign(variable + random.uniform(0.0, 0.2, variable.shape).astype("float32"))
    return model


def h5_file(model, path):
    """The complete model in the older format, without its optimiser."""
    model.compile("adam", "categorical_crossentropy")
    model.save(path, include_optimizer=False)
    return keras.models.load_model(path, compile=False)  # an adapted layer looks at its weights when it is made


def archive(model, path):
    """The archive, compiled and trained for a step; beside one of them, its description and its weights alone."""
    adam = path.stem.endswith("stack")  # whose moments take as much room as weights: once will do
    model.compile("adam" if adam else keras.optimizers.SGD(0.0), "categorical_crossentropy", metrics=["accuracy"])
    model.fit(np.zeros((2, SIDE, SIDE, 3), "float32"), np.eye(CLASSES)[:2], verbose=0)
    model.save(path)
    if path.stem.endswith("backbone"):
        path.with_name(f"{path.stem}_alone.json").write_text(model.to_json())
        model.save_weights(path.with_name(f"{path.stem}_alone.weights.h5"))
        model.save_weights(path.with_name(f"{path.stem}_alone_legacy.h5"))
    return model


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--keras", action="store_true")
    options = parser.parse_args()
    version = "tf" + ".".join(tf.__version__.split(".")[:2])
    options.folder.mkdir(exist_ok=True)
    older = (
        residual,
        cnn,
        nested,
        transfer,
        logits,
        with_lambda,
        with_operator,
        *((resnet50,) if options.full else ()),
    )
    for make in (stack, branches, backbone, logits, half, deferred) if options.keras else older:
        keras.backend.clear_session()  # names count from the start
        keras.utils.set_random_seed(0)
        model, name = shaken(make()), f"{version}_{make.__name__}"
        ending, write = (".keras", archive) if options.keras else (".h5", h5_file)
        model = write(model, options.folder / f"{name}{ending}")
        suffix = "_archive.npy" if options.keras else ".npy"  # of another network than the `.h5` of that name
        np.save(options.folder / f"{name}{suffix}", model(images() / np.float32(255), training=False))
        print(name)


if __name__ == "__main__":
    main()
