"""What is measured: distances between image distributions, reconstruction, and cost."""

from gentickets.metrics.cost import Cost, TrainingFlops, cost, training_flops
from gentickets.metrics.features import FeatureExtractor, classifier_features
from gentickets.metrics.frechet import RealStatistics, distances
from gentickets.metrics.inception import inception_features
from gentickets.metrics.measurement import Measurement
from gentickets.metrics.reconstruction import reconstruction_mse

__all__ = [
    "Cost",
    "FeatureExtractor",
    "Measurement",
    "RealStatistics",
    "TrainingFlops",
    "classifier_features",
    "cost",
    "distances",
    "inception_features",
    "reconstruction_mse",
    "training_flops",
]
