"""What is measured: distances between image distributions, what classifiers see, reconstruction, and cost."""

from gentickets.metrics.classifier import Classifier, classifier_features, has_classes
from gentickets.metrics.cost import Cost, cost
from gentickets.metrics.downstream import class_score, downstream_accuracy
from gentickets.metrics.efficientnet import efficientnet_features
from gentickets.metrics.features import FeatureExtractor, random_features
from gentickets.metrics.frechet import Gaussian, frechet_distance
from gentickets.metrics.inception import inception_features
from gentickets.metrics.kernel import kernel_distance
from gentickets.metrics.manifold import Coverage, K, manifold_coverage
from gentickets.metrics.measurement import Measurement, mean_over_networks
from gentickets.metrics.of_images import OfImages
from gentickets.metrics.reconstruction import reconstructed, reconstruction_mse
from gentickets.metrics.sampling import COVERAGE, SAMPLE_METRICS, sample_metrics
from gentickets.metrics.statistics import FeatureStatistics

__all__ = [
    "COVERAGE",
    "SAMPLE_METRICS",
    "Classifier",
    "Cost",
    "Coverage",
    "FeatureExtractor",
    "FeatureStatistics",
    "Gaussian",
    "K",
    "Measurement",
    "OfImages",
    "class_score",
    "classifier_features",
    "cost",
    "downstream_accuracy",
    "efficientnet_features",
    "frechet_distance",
    "has_classes",
    "inception_features",
    "kernel_distance",
    "manifold_coverage",
    "mean_over_networks",
    "random_features",
    "reconstructed",
    "reconstruction_mse",
    "sample_metrics",
]
