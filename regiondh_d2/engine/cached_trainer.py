"""Training of heads on cached region features: minutes instead of an hour."""

from typing import Any

from torch import nn

from ..data.training import training_records
from ..modeling.cached import CachedNetwork
from .feature_cache import FeatureCache
from .network import learns_from_boxes
from .trainer import RegionDHTrainer

__all__ = ["CachedHeadsTrainer", "trainer_class"]


class CachedHeadsTrainer(RegionDHTrainer):
    """A :class:`RegionDHTrainer` for ``MODEL.REGION_DH.FEATURE_CACHE``.

    The backbone and the RPN are frozen. What they make of the images is computed before the first
    iteration, unless the folder holds it, and both training and evaluation read it there.
    Checkpoints are those of the model, as if it had trained on images.
    """

    @classmethod
    def wrap_model(cls, cfg, model: Any) -> nn.Module:
        """The model, a ``RegionDH``, on cached regions; the part that they stand for is frozen.

        Raises:
            RegionDHError: a part below the heads is not frozen, or the box head has no pooled
                features to cache.
        """
        # After the optimizer is built, so that checkpoints fit a training from images, too.
        FeatureCache(cfg).freeze(model)
        return CachedNetwork(model)

    @classmethod
    def model_of(cls, network: nn.Module) -> nn.Module:
        network = super().model_of(network)
        return network.model if isinstance(network, CachedNetwork) else network

    @classmethod
    def build_train_loader(cls, cfg):
        """Checks the dicts; :meth:`resume_or_load` sets the loader, which needs the weights."""
        training_records(cfg, learns_from_boxes(cfg))
        return ()

    def resume_or_load(self, resume=True):
        """As in the base class, then the features of ``DATASETS.TRAIN`` that aren't cached yet."""
        super().resume_or_load(resume)
        cache, model = FeatureCache(self.cfg), self.model_of(self.model)
        for name in self.cfg.DATASETS.TRAIN:
            cache.ensure(model, name, mirrored=cache.mirrored)
        self._trainer.reset_data_loader(lambda: cache.train_loader(model))
        self._skip_seen_batches()

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return FeatureCache(cfg).test_loader(dataset_name)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """As in the base class, on the features of ``DATASETS.TEST``, computed where they lack."""
        cache = FeatureCache(cfg)
        for name in cfg.DATASETS.TEST:
            cache.ensure(cls.model_of(model), name, mirrored=False)
        return super().test(cfg, model, evaluators)


def trainer_class(cfg) -> type[RegionDHTrainer]:
    """The trainer for a config: on cached features where it names a folder for them."""
    return CachedHeadsTrainer if cfg.MODEL.REGION_DH.FEATURE_CACHE else RegionDHTrainer
