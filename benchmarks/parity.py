"""Does EfficientNet-Lite0 with its ImageNet weights compute here what it computes in PyTorch?

Run: python benchmarks/parity.py [--dataset NAME|DIR] [--images 64]
Real images, resized to 224 pixels, go through both networks. Theirs is the `efficientnet-lite-pytorch` package, ours is
`backbones.efficientnet_lite0` with the weights that `weights.imagenet` finds, and the classifier of the same file.
"""

import argparse

import numpy as np
from measure import WITHOUT_TORCH, row, table

from cifar_keras.config import ConfigError, Limits, tutorial
from cifar_keras.data import load

TITLE = "EfficientNet-Lite0, ImageNet logits"


def ours(images):
    """Logits of the 1,000 ImageNet classes, float32 `(n, 1000)`, of uint8 images."""
    import keras

    from cifar_keras.models import weights
    from cifar_keras.models.torch_files import read_tensors
    from cifar_keras.models.zoo import build, row_of

    training = tutorial("resnet50_frozen", pixels=224)
    network = row_of(training, backbone="efficientnet_lite0")
    model = build(network, image_shape=images.shape[1:], classes=10, steps=100, seed=0)
    path = weights.imagenet("efficientnet_lite0", data_dir=None)
    weights.load_backbone(model, path)
    pooled = keras.Model(model.input, model.get_layer("head_pool").output)
    resized = keras.Model(model.input, model.get_layer("scaling_lite").output)
    tensors = read_tensors(path)
    logits = pooled.predict(images, batch_size=16, verbose=0) @ tensors["_fc.weight"].T + tensors["_fc.bias"]
    return logits, resized.predict(images, batch_size=16, verbose=0), path


def theirs(scaled, path):
    """The same by PyTorch, of images that are scaled already."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path)).eval()
    with torch.no_grad():
        return network(torch.tensor(scaled.transpose(0, 3, 1, 2))).numpy()


def rows(full, *, dataset="cifar10", images=64):
    """One row: the largest difference of a logit."""
    del full
    try:
        data = load(dataset, limits=Limits(test=images))
        logits, scaled, path = ours(np.stack([np.asarray(image) for image in data.test.images]))
        other = theirs(scaled, path)
    except ImportError:
        return [row(TITLE, "against PyTorch", note=f"{WITHOUT_TORCH} and efficientnet-lite-pytorch")]
    except ConfigError as error:
        return [row(TITLE, "against PyTorch", note=f"not measured: {error}")]
    same = int(np.sum(logits.argmax(axis=1) == other.argmax(axis=1)))
    note = f"{same} of {len(logits)} images of {data.label} get the same class; logits reach {np.abs(other).max():.1f}"
    return [row(TITLE, "largest difference from PyTorch", float(np.abs(logits - other).max()), "", note=note)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    print(table(rows(True, dataset=options.dataset, images=options.images), "plain"))
