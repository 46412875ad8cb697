"""Full-ranking evaluation: metrics, the evaluation of a split, the popularity baseline."""

from crane.evaluation.evaluate import KS, evaluate, evaluate_split, popularity
from crane.evaluation.metrics import METRICS

__all__ = ["KS", "METRICS", "evaluate", "evaluate_split", "popularity"]
