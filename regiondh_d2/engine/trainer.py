"""The trainer: Detectron2's, with our checkpointer, learning-rate factors and evaluators."""

import os

import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.engine.hooks import BestCheckpointer, PeriodicWriter
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn

from ..checkpoint import RegionDHCheckpointer, model_fingerprint
from ..evaluation import RetrievalEvaluator, RoleFilter, VOCBoxEvaluator
from .feature_cache import FeatureCache

__all__ = ["RegionDHTrainer", "build_optimizer"]

# Parameter-name prefixes of the parts that MODEL.REGION_DH.LR_FACTORS names.
PARTS = {
    "BACKBONE": "backbone.",
    "PROPOSAL_GENERATOR": "proposal_generator.",
    "BOX_HEAD": "roi_heads.box_head.",
    "BOX_PREDICTOR": "roi_heads.box_predictor.",
    "INSTANCE_HASH": "roi_heads.instance_hash.",
    "IMAGE_HASH": "roi_heads.image_hash.",
}


def build_optimizer(cfg, model: nn.Module) -> torch.optim.Optimizer:
    """SGD as Detectron2 builds it, with ``MODEL.REGION_DH.LR_FACTORS`` on the base learning rate.

    Parameters of a part whose factor is 0 are frozen (``requires_grad`` False), so that no gradient
    is computed for them.
    """
    factors = {prefix: cfg.MODEL.REGION_DH.LR_FACTORS[part] for part, prefix in PARTS.items()}

    def factor(name: str) -> float:
        part = next((f for prefix, f in factors.items() if name.startswith(prefix)), 1.0)
        # Detectron2's own `bias_lr_factor` would replace the factors of the parts on biases.
        return part * (cfg.SOLVER.BIAS_LR_FACTOR if name.endswith(".bias") else 1.0)

    for name, parameter in model.named_parameters():
        if factor(name) == 0.0:
            parameter.requires_grad_(False)
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        lr_factor_func=factor,
    )
    optimizer = torch.optim.SGD(
        params,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    )
    return maybe_add_gradient_clipping(cfg, optimizer)


class ResumableBestCheckpointer(BestCheckpointer):
    """A :class:`BestCheckpointer` that remembers the best metric across ``--resume``.

    Detectron2's starts anew, so that the first evaluation after a resume replaces the best model.
    """

    def state_dict(self) -> dict:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict) -> None:
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]


class RegionDHTrainer(DefaultTrainer):
    """:class:`DefaultTrainer` for Region-DH.

    Datasets whose name ends in ``_dev`` are for choices: on them, and only on them, the checkpoint
    with the best ``MAP_min`` is kept as ``model_best.pth`` where ``TEST.EVAL_PERIOD`` is set.
    """

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    def resume_or_load(self, resume=True):
        super().resume_or_load(resume)
        if self.cfg.MODEL.REGION_DH.FEATURE_CACHE:
            cache = FeatureCache(self.cfg)
            for name in self.cfg.DATASETS.TRAIN:
                cache.ensure(_unwrap(self.model), name, mirrored=cache.mirrored)
            self._trainer.reset_data_loader(cache.train_loader)

    def build_hooks(self):
        # DefaultTrainer makes its checkpointer just before the hooks that use it.
        self.checkpointer = RegionDHCheckpointer(
            self.checkpointer.model, self.cfg.OUTPUT_DIR, **self.checkpointer.checkpointables
        )
        hooks = super().build_hooks()
        names = self.cfg.DATASETS.TEST
        selects = len(names) == 1 and names[0].endswith("_dev")
        if selects and self.cfg.TEST.EVAL_PERIOD > 0 and comm.is_main_process():
            metric = f"retrieval/MAP_min@{self.cfg.TEST.RETRIEVAL.TOPK}"
            best = ResumableBestCheckpointer(
                self.cfg.TEST.EVAL_PERIOD, self.checkpointer, metric, "max"
            )
            writer = next(i for i, h in enumerate(hooks) if isinstance(h, PeriodicWriter))
            hooks.insert(writer, best)
        return hooks

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        if cfg.MODEL.REGION_DH.FEATURE_CACHE:
            return FeatureCache(cfg).test_loader(dataset_name)
        return super().build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg, dataset_name: str, output_folder: str = "", model_fingerprint: str = ""
    ) -> DatasetEvaluator:
        """The evaluator for a dataset's ``evaluator_type``.

        Raises:
            ValueError: the dataset has no type that is known here.
        """
        output_folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        metadata = MetadataCatalog.get(dataset_name)
        kind = metadata.get("evaluator_type", None)
        if kind == "pascal_voc":
            return VOCBoxEvaluator(dataset_name)
        if kind == "coco":
            return COCOEvaluator(dataset_name, output_dir=os.path.join(output_folder, dataset_name))
        if kind != "regiondh_retrieval":
            raise ValueError(
                f"dataset {dataset_name!r} has evaluator_type {kind!r}; known: regiondh_retrieval "
                "(register_retrieval_dataset sets it), pascal_voc, coco"
            )
        node = cfg.TEST.RETRIEVAL
        retrieval = RetrievalEvaluator(
            dataset_name,
            topk=node.TOPK,
            count_difficult=node.COUNT_DIFFICULT,
            output_dir=output_folder,
            database_codes=node.DATABASE_CODES or None,
            config_name=os.path.join(cfg.OUTPUT_DIR, "config.yaml"),
            model_fingerprint=model_fingerprint,
            instance_min_score=node.INSTANCE_MIN_SCORE,
        )
        evaluators: list[DatasetEvaluator] = [retrieval]
        queries = metadata.query_datasets
        kinds = [MetadataCatalog.get(name).get("evaluator_type", None) for name in queries]
        if node.BOX_AP and kinds == ["pascal_voc"]:
            evaluators.append(RoleFilter("query", VOCBoxEvaluator(queries[0])))
        return DatasetEvaluators(evaluators)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """As :meth:`DefaultTrainer.test`; code files carry the fingerprint of the model."""
        module = _unwrap(model)
        if cfg.MODEL.REGION_DH.FEATURE_CACHE:
            cache = FeatureCache(cfg)
            for name in cfg.DATASETS.TEST:
                cache.ensure(module, name, mirrored=False)
        if evaluators is None:
            fingerprint = model_fingerprint(module)
            evaluators = [
                cls.build_evaluator(cfg, name, model_fingerprint=fingerprint)
                for name in cfg.DATASETS.TEST
            ]
        return super().test(cfg, model, evaluators)


def _unwrap(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
