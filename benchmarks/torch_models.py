"""The implementations in PyTorch: the study's networks layer by layer, a tutorial's network, and their training loop.

Everything is what a careful user would write: augmentation of whole batches on uint8, fused optimisers where they
exist, gradients set to None. Speed depends on memory layout, compilation and loader workers; the benchmarks try all.
"""

import dataclasses
import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last, "compile": torch.channels_last}
CIFAR_MEAN, CIFAR_STD = (125.307, 122.950, 113.865), (62.993, 62.089, 66.705)
IMAGENET_MEAN = (123.68, 116.779, 103.939)


class Normalize(nn.Module):
    """Brings uint8 images `(batch, 3, height, width)` to float32, each channel minus its mean over its deviation."""

    def __init__(self, mean, std=(1.0, 1.0, 1.0)):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images):
        return (images.float() - self.mean) / self.std


class Bottleneck(nn.Module):
    """A residual block as in Keras: the stride stands in the first 1x1 convolution, convolutions have biases."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.shortcut = None
        if channels != 4 * width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, 4 * width, 1, stride), batch_norm(4 * width))
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 1, stride),
            batch_norm(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            batch_norm(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 4 * width, 1),
            batch_norm(4 * width),
        )

    def forward(self, x):
        return F.relu(self.body(x) + (x if self.shortcut is None else self.shortcut(x)), inplace=True)


def batch_norm(channels):
    return nn.BatchNorm2d(channels, eps=1.001e-5)


class ResNet50(nn.Module):
    """Keras' ResNet50 without top, and the study's probe: mean, BatchNorm without affine, linear.

    Args:
        pixels: side to which the images are brought first; None leaves them.
        classes: number of classes.
    """

    def __init__(self, *, pixels=None, classes=10):
        super().__init__()
        self.pixels = pixels
        self.scaling = Normalize(IMAGENET_MEAN)
        stem = [nn.Conv2d(3, 64, 7, 2, padding=3), batch_norm(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)]
        channels, blocks = 64, []
        for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for number in range(count):
                blocks.append(Bottleneck(channels, width, 1 if number else stride))
                channels = 4 * width
        self.backbone = nn.Sequential(*stem, *blocks)
        self.norm = nn.BatchNorm1d(channels, affine=False)
        self.logits = nn.Linear(channels, classes)

    def forward(self, images):
        if self.pixels is not None:  # enlarging: antialiasing would change nothing
            images = F.interpolate(images.float(), (self.pixels, self.pixels), mode="bilinear")
        return self.logits(self.norm(self.backbone(self.scaling(images)).mean((2, 3))))


class AirNet(nn.Module):
    """airbench94's network as `cifar_keras.models.blocks.airnet` and `small_head` have it."""

    def __init__(self, *, classes=10, widths=(64, 256, 256)):
        super().__init__()
        whitening = nn.Conv2d(3, 24, 2, bias=False).requires_grad_(False)
        parts, channels = [Normalize(CIFAR_MEAN, CIFAR_STD), whitening, nn.GELU()], 24
        for width in widths:
            parts += [dirac_convolution(channels, width), nn.MaxPool2d(2), bias_norm(width), nn.GELU()]
            parts += [dirac_convolution(width, width), bias_norm(width), nn.GELU()]
            channels = width
        self.body = nn.Sequential(*parts)
        self.logits = nn.Linear(channels, classes, bias=False)
        nn.init.normal_(self.logits.weight, std=1 / channels)

    def forward(self, images):
        return self.logits(self.body(images).amax((2, 3)))


def dirac_convolution(channels, filters):
    layer = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[: min(channels, filters)])
    return layer


def bias_norm(channels):
    """BatchNorm without a trained scale."""
    layer = nn.BatchNorm2d(channels, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer


class TutorialNet(nn.Module):
    """A tutorial's five convolutions, 64-64-M-128-128-M-256-M, each with BatchNorm and ReLU, then 512 and dropout."""

    def __init__(self, *, classes=10):
        super().__init__()
        parts, channels = [Normalize((127.5,) * 3, (127.5,) * 3)], 3
        for width in (64, 64, "pool", 128, 128, "pool", 256, "pool"):
            if width == "pool":
                parts.append(nn.MaxPool2d(2))
            else:
                parts += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
        head = [
            nn.Flatten(),
            nn.Linear(channels * 16, 512),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(512, classes),
        ]
        self.layers = nn.Sequential(*parts, *head)

    def forward(self, images):
        return self.layers(images)


NETWORKS = {  # by the name of the study's row whose equal they are
    "resnet50_frozen": ResNet50,
    "resnet50_augment_224": functools.partial(ResNet50, pixels=224),
    "resnet50_finetune": ResNet50,
    "scratch_cnn": AirNet,
}


def weights_of(model):
    """How many numbers a model holds, counted as Keras counts: running statistics too, scales that stay one not."""
    ones = {id(m.weight) for m in model.modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.requires_grad}
    parameters = sum(p.numel() for p in model.parameters() if id(p) not in ones)
    return parameters + sum(b.numel() for name, b in model.state_dict().items() if name.endswith(("_mean", "_var")))


class Muon(torch.optim.Optimizer):
    """`training.optim.Muon`: orthogonalised momentum for convolution kernels, Nesterov SGD for everything else."""

    def __init__(self, model, *, rate=0.16, head_rate=0.67 * 500 / 256**2, bias_rate=0.053 * 500, decay=1e-3):
        trained = [p for p in model.parameters() if p.requires_grad]
        super().__init__([p for p in trained if p.ndim == 4], {"lr": rate, "momentum": 0.6})
        groups = [
            {"params": [p for p in trained if p.ndim == ndim], "lr": lr, "weight_decay": decay / lr}
            for ndim, lr in ((2, head_rate), (1, bias_rate))
        ]
        self.others = torch.optim.SGD(groups, momentum=0.85, nesterov=True, fused=True)

    @torch.no_grad()
    def step(self):
        self.others.step()
        for group in self.param_groups:
            for kernel in group["params"]:
                if "momentum" not in self.state[kernel]:
                    self.state[kernel]["momentum"] = torch.zeros_like(kernel)
                buffer = self.state[kernel]["momentum"]
                buffer.mul_(group["momentum"]).add_(kernel.grad)
                update = kernel.grad.add(buffer, alpha=group["momentum"])
                kernel.mul_(math.sqrt(len(kernel)) / kernel.norm())
                update = orthogonalized(update.reshape(len(update), -1)).view_as(kernel)
                kernel.add_(update, alpha=-group["lr"])

    def zero_grad(self):
        super().zero_grad()
        self.others.zero_grad()


def orthogonalized(matrix, *, steps=3):
    """The Newton-Schulz iteration of `cifar_keras.training.optim.orthogonalized`."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if len(matrix) > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if len(matrix) > matrix.shape[1] else x


class Images(torch.utils.data.Dataset):
    """Training images in memory, cropped back after padding, mirrored and jittered a batch at a time.

    Args:
        images: uint8 `(n, height, width, 3)`.
        labels: int `(n,)`.
        pad: pixels on each side.
        mode: how the border is filled: 'reflect' or 'constant'.
        jitter: largest relative change of brightness and of contrast.
    """

    def __init__(self, images, labels, *, pad, mode="reflect", jitter=0.0):
        padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode)
        height, width = images.shape[1:3]
        # (n, y, x, 3, height, width): every crop of every image, as a view.
        self.crops = torch.from_numpy(padded).unfold(1, height, 1).unfold(2, width, 1)
        self.labels = torch.from_numpy(labels.astype("int64"))
        self.places, self.jitter = 2 * pad + 1, jitter

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, indices):
        """A whole batch, which the loader's fetcher asks for where a dataset has this method."""
        indices = torch.tensor(indices)
        moves = torch.randint(self.places, (2, len(indices)))
        images = self.crops[indices, moves[0], moves[1]]
        mirrored = torch.rand(len(indices)) < 0.5
        images[mirrored] = images[mirrored].flip(-1)
        return (self.jittered(images) if self.jitter else images), self.labels[indices]

    def jittered(self, images):
        """Brightness, then contrast around the mean grey."""
        factors = 1 + self.jitter * (2 * torch.rand(2, len(images), 1, 1, 1) - 1)
        images = images * factors[0]
        means = images.mean((1, 2, 3), keepdim=True)
        return images.sub_(means).mul_(factors[1]).add_(means).clamp_(0, 255).to(torch.uint8)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained: what the two loops of a comparison share."""

    network: type
    optimizer: callable
    batch_size: int
    label_smoothing: float = 0.0
    augmentation: dict = dataclasses.field(default_factory=lambda: {"pad": 2})


RECIPES = {
    "resnet50_finetune": Recipe(
        ResNet50, lambda model: torch.optim.AdamW(model.parameters(), 5e-4, weight_decay=2e-2, fused=True), 128
    ),
    "scratch_cnn": Recipe(AirNet, Muon, 500, label_smoothing=0.2),
    "tutorial": Recipe(
        TutorialNet,
        lambda model: torch.optim.Adam(model.parameters(), 1e-3, fused=True),
        64,
        augmentation={"pad": 4, "mode": "constant", "jitter": 0.2},
    ),
}


class Trainer:
    """A network with its optimiser.

    Args:
        recipe: `Recipe`.
        layout: key of LAYOUTS; 'compile' is inductor's work and needs a C++ compiler.
        precision: 'float32', or 'mixed_bfloat16' for PyTorch's autocast.
    """

    def __init__(self, recipe, *, layout, precision="float32"):
        self.format, self.smoothing = LAYOUTS[layout], recipe.label_smoothing
        self.mixed = torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed_bfloat16")
        model = recipe.network().to(memory_format=self.format).train()
        self.optimizer = recipe.optimizer(model)
        self.forward = torch.compile(model) if layout == "compile" else model

    def step(self, images, targets):
        """Trains on one batch, uint8 `(batch, 3, height, width)`, and returns the loss."""
        with self.mixed:
            logits = self.forward(images.contiguous(memory_format=self.format))
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def batches(recipe, images, labels, *, workers):
    """Endless augmented batches.

    Args:
        recipe: `Recipe`.
        images: uint8 `(n, height, width, 3)`.
        labels: int `(n,)`.
        workers: processes of the data loader; 0 loads in this one.
    """
    loader = torch.utils.data.DataLoader(
        Images(images, labels, **recipe.augmentation),
        recipe.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=tuple,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def probabilities(model, images, *, layout, batch_size):
    """Class probabilities of uint8 images `(n, height, width, 3)`: float32 `(n, classes)`."""
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.inference_mode():
        batches = (
            model(part.contiguous(memory_format=LAYOUTS[layout])).softmax(1)
            for part in channels_first.split(batch_size)
        )
        return torch.cat(list(batches)).numpy()
