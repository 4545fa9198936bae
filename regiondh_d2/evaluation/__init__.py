"""Retrieval metrics, and the evaluators that measure a model with them."""

from .box_evaluators import COCOBoxEvaluator, RoleFilter, VOCBoxEvaluator
from .ranking_metrics import RankingResult, evaluate_distances, evaluate_ranking
from .retrieval_evaluator import RetrievalEvaluator

__all__ = [
    "COCOBoxEvaluator",
    "RankingResult",
    "RetrievalEvaluator",
    "RoleFilter",
    "VOCBoxEvaluator",
    "evaluate_distances",
    "evaluate_ranking",
]
