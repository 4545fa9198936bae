"""Retrieval metrics, and the evaluators that measure a model with them."""

from .ranking_metrics import RankingResult, evaluate_distances, evaluate_ranking
from .retrieval_evaluator import COCOBoxEvaluator, RetrievalEvaluator, RoleFilter, VOCBoxEvaluator

__all__ = [
    "COCOBoxEvaluator",
    "RankingResult",
    "RetrievalEvaluator",
    "RoleFilter",
    "VOCBoxEvaluator",
    "evaluate_distances",
    "evaluate_ranking",
]
