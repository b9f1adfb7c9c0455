"""Feature space: which images are close before the last layer."""

import numpy as np
import seaborn

from cifar_keras.explain.base import PALETTE, Section, gallery, named
from cifar_keras.plotting import FEW, drawn, shares, titled, without_frame

NEIGHBOURS = 20  # of KNN
GALLERY = (6, 4)  # test images, and the nearest training images of each
POINTS = 3000  # of the t-SNE map and of the silhouette, whose costs grow faster than the images


@drawn
def feature_space(train, test, predicted, class_names, *, accuracy, seed=0) -> Section:
    """Nearest training images, KNN, a t-SNE map, k-means agreement, separability per class.

    Args:
        train: `(embeddings, labels, images)` of training images: float `(n, channels)`, int `(n,)`, uint8
            `(n, height, width, 3)`.
        test: the same of test images.
        predicted: int `(n,)`, the model's classes of the test images.
        class_names: one per class.
        accuracy: the model's own on these test images, in [0, 1].
        seed: of the t-SNE map, k-means and the choice of images.
    """
    (x, labels, _), (z, truth, _) = train, test
    x, z, predicted = unit(x), unit(z), np.asarray(predicted)
    near, knn = neighbours(x, np.asarray(labels), z)
    separability, rank = separability_of(z, truth, predicted, class_names, seed=seed)
    points = tsne_map(z[chosen := sample(len(z), POINTS, seed)], seed=seed)
    shown = _shown(x, labels, z, truth, near, predicted, seed=seed)
    numbers = {
        "training embeddings": len(x), "test embeddings": len(z), "channels": x.shape[1], "accuracy": accuracy,
        "KNN accuracy": float(np.mean(knn == truth)),
        "k-means adjusted mutual information": kmeans_agreement(z, truth, len(class_names), seed=seed),
        "rank correlation of separability and recall": rank,
        "neighbours": shown,
        "map": {"image": chosen.tolist(), "x": points[:, 0].tolist(), "y": points[:, 1].tolist()},
    }  # fmt: skip
    figures = {
        "map": _map(points, truth[chosen], (predicted != truth)[chosen], class_names),
        "separability": _separability_figure(separability),
        "neighbours": _neighbours_figure(shown, train, test, predicted, class_names),
    }
    descriptions = {
        "map": "t-SNE map of the test images' embeddings, coloured by true class, errors marked.",
        "separability": "Silhouette of each class against the model's recall of it.",
        "neighbours": "Test images, each beside the training images whose embeddings are nearest.",
    }
    return Section(
        "space", "Which images it places close together", figures, descriptions, numbers,
        {"Separability by class": separability}, (_sentence(numbers),),
    )  # fmt: skip


def unit(embeddings):
    """Embeddings of length 1, float32, so that distances depend on angles only."""
    x = np.asarray(embeddings, "float32")
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def neighbours(x, labels, z):
    """The nearest training images of each test image by cosine, and the class by their distance-weighted vote.

    Args:
        x: float32 `(n, channels)`, of training images.
        labels: int `(n,)`.
        z: the same as `x`, of test images.
    Returns: `(nearest, classes)`: int `(m, k)`, the nearest first, and int `(m,)`.
    """
    from sklearn.neighbors import KNeighborsClassifier

    k = min(NEIGHBOURS, len(x))
    voters = KNeighborsClassifier(k, metric="cosine", weights="distance", algorithm="brute").fit(x, labels)
    return voters.kneighbors(z, return_distance=False), voters.predict(z)


def kmeans_agreement(z, truth, classes, *, seed):
    """Agreement of k-means clusters with the classes: adjusted mutual information, 0 by chance, 1 if equal."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import adjusted_mutual_info_score

    clusters = MiniBatchKMeans(min(classes, len(z)), random_state=seed, n_init=5).fit_predict(z)
    return float(adjusted_mutual_info_score(truth, clusters))


def separability_of(z, truth, predicted, class_names, *, seed):
    """The mean silhouette (cosine) and recall of each class, and the rank correlation of both (Spearman).

    Returns: `(rows, correlation)`; the correlation is None with fewer than three classes or where nothing varies.
    """
    from scipy.stats import spearmanr
    from sklearn.metrics import silhouette_samples

    chosen = sample(len(z), POINTS, seed)
    present = np.unique(truth[chosen])
    if not 2 <= len(present) < len(chosen):  # the silhouette needs another class, and a class of two images
        return [], None
    values = silhouette_samples(z[chosen], truth[chosen], metric="cosine")
    rows = [
        {
            "class": class_names[label], "silhouette": float(values[truth[chosen] == label].mean()),
            "recall": float(np.mean(predicted[truth == label] == label)),
        }
        for label in present
    ]  # fmt: skip
    columns = [[row[name] for row in rows] for name in ("silhouette", "recall")]
    if len(rows) < 3 or any(len(set(column)) == 1 for column in columns):
        return rows, None
    return rows, float(spearmanr(*columns).statistic)


def sample(count, most, seed):
    """Sorted indices of at most `most` of `count` items, drawn by the seed."""
    return np.sort(np.random.RandomState(seed).permutation(count)[:most])


def tsne_map(z, *, seed):
    """t-SNE (van der Maaten and Hinton, JMLR 9, 2008) after a PCA to 50 channels: float `(n, 2)`."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(z) < 4:
        return np.zeros((len(z), 2))
    x = PCA(min(50, *z.shape), random_state=seed).fit_transform(z)
    perplexity = min(30, (len(z) - 1) // 3 + 1)
    return TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed).fit_transform(x)


def _map(points, own, wrong, class_names):
    figure = titled(f"t-SNE of {len(points):,} test images", size=(6, 6.4))
    panel = figure.add_subplot()
    few = len(class_names) <= FEW
    palette = PALETTE if len(class_names) <= 10 else seaborn.color_palette("husl", len(class_names))
    names = named(class_names)
    for label in np.unique(own):
        mine = own == label
        panel.scatter(*points[mine].T, s=7, color=palette[label], linewidths=0, label=names[label] if few else None)
    panel.scatter(*points[wrong].T, s=16, facecolors="none", edgecolors="black", linewidths=0.5, label="misclassified")
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
    panel.legend(fontsize=8, frameon=False, markerscale=2, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4)
    return figure


def _separability_figure(rows):
    figure = titled("separability and accuracy by class", size=(6, 4.2))
    panel = figure.add_subplot()
    for place, row in enumerate(sorted(rows, key=lambda row: row["recall"])):
        at = (row["silhouette"], row["recall"])
        panel.plot(*at, "o", color=PALETTE[0], markersize=5)
        if len(rows) <= FEW:
            x, side = (-6, "right") if place % 2 else (6, "left")
            beside = {"xytext": (x, 0), "textcoords": "offset points", "ha": side, "va": "center"}
            panel.annotate(named([row["class"]])[0], at, fontsize=8, **beside)
    panel.margins(x=0.15)
    panel.set(xlabel="mean silhouette (cosine)", ylabel="recall")
    shares(panel.yaxis)
    without_frame(panel, "both")
    return figure


def _shown(x, labels, z, truth, near, predicted, *, seed):
    """Test images, half right and half wrong, with index, label and distance of the nearest training images."""
    count, columns = GALLERY
    wrong = predicted != truth
    order = np.random.RandomState(seed).permutation(len(truth))
    chosen = np.r_[order[~wrong[order]][: count // 2], order[wrong[order]][: count - count // 2]]
    return [
        {
            "image": int(i), "label": int(truth[i]), "predicted": int(predicted[i]),
            "nearest": [
                {"image": int(j), "label": int(labels[j]), "cosine distance": float(1 - z[i] @ x[j])}
                for j in near[i][:columns]
            ],
        }
        for i in chosen
    ]  # fmt: skip


def _neighbours_figure(shown, train, test, predicted, class_names):
    """One row per chosen test image, with its nearest training images."""
    pictures, captions = [], []
    for row in shown:
        pictures.append(np.asarray(test[2][row["image"]]))
        captions.append((f"TEST: {class_names[row['label']]}", f"predicted {class_names[row['predicted']]}"))
        for other in row["nearest"]:
            pictures.append(np.asarray(train[2][other["image"]]))
            captions.append((class_names[other["label"]], f"{other['cosine distance']:.3f}"))
    title = "test images and their nearest training images, with the cosine distance"
    return gallery(np.stack(pictures), captions, title, columns=1 + len(shown[0]["nearest"]))


def _sentence(numbers):
    difference = 100 * (numbers["KNN accuracy"] - numbers["accuracy"])
    beside = f"{abs(difference):.1f} points {'above' if difference > 0 else 'below'}"
    return (
        f"A vote of the {NEIGHBOURS} nearest training images is right on {numbers['KNN accuracy']:.1%} of the test "
        f"images, {'as good as' if abs(difference) < 0.5 else beside} the model's own last layer. k-means clusters "
        f"agree with the classes by {numbers['k-means adjusted mutual information']:.2f} (adjusted mutual information)."
    )
