"""Where models fail, what they look at, and how far their probabilities can be trusted: one function per section.

Each takes stored predictions, embeddings or a model and returns a `Section`: figures, and the numbers behind them.
"""

from cifar_keras.explain.base import Section
from cifar_keras.explain.calibration import calibration
from cifar_keras.explain.embeddings import feature_space
from cifar_keras.explain.errors import errors
from cifar_keras.explain.model_comparison import model_comparison

__all__ = ["Section", "calibration", "errors", "feature_space", "model_comparison"]
