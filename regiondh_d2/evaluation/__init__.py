"""Retrieval metrics, and the evaluators that measure a model with them."""

from .ranking_metrics import RankingResult, evaluate_ranking
from .retrieval_evaluator import RetrievalEvaluator, RoleFilter, VOCBoxEvaluator

__all__ = [
    "RankingResult",
    "RetrievalEvaluator",
    "RoleFilter",
    "VOCBoxEvaluator",
    "evaluate_ranking",
]
