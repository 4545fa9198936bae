"""Training, its set-up from configs, and search by image.

The modules for search are imported only with :class:`RegionDHSearcher` or :class:`QueryEncoder`,
since a training doesn't need them.
"""

from typing import TYPE_CHECKING, Any

from .cached_trainer import CachedHeadsTrainer, trainer_class
from .defaults import build_cfg, setup_cfg
from .optimizer import build_optimizer
from .trainer import RegionDHTrainer

if TYPE_CHECKING:
    from .query_encoder import QueryEncoder
    from .searcher import RegionDHSearcher

__all__ = [
    "CachedHeadsTrainer",
    "QueryEncoder",
    "RegionDHSearcher",
    "RegionDHTrainer",
    "build_cfg",
    "build_optimizer",
    "setup_cfg",
    "trainer_class",
]


def __getattr__(name: str) -> Any:
    if name == "RegionDHSearcher":
        from .searcher import RegionDHSearcher

        return RegionDHSearcher
    if name == "QueryEncoder":
        from .query_encoder import QueryEncoder

        return QueryEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
