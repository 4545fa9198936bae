"""The trainer: Detectron2's, with our checkpointer, learning-rate factors and evaluators."""

import logging
import os
import re
import weakref

import torch
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.engine.hooks import BestCheckpointer, PeriodicWriter
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoint import RegionDHCheckpointer, model_fingerprint
from ..data.catalog import adopt
from ..data.training import StrictMapper, build_train_loader
from ..evaluation import COCOBoxEvaluator, RetrievalEvaluator, RoleFilter, VOCBoxEvaluator
from ..utils.errors import RegionDHError
from .feature_cache import FeatureCache
from .training_record import KEY, TrainingRecorder

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

# A loss in Detectron2's text of a training that has diverged; NumPy 2 adds its type to the value.
_NOT_FINITE = re.compile(r"'(\w+)': (?:np\.float64\()?(-?(?:nan|inf))")
_AFTER_DIVERGENCE = (
    "lower SOLVER.BASE_LR or enable SOLVER.CLIP_GRADIENTS, and start again, from the last "
    "checkpoint as MODEL.WEIGHTS if you like"
)


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


class FiniteCheckpointer(RegionDHCheckpointer):
    """A :class:`RegionDHCheckpointer` that saves no weights that aren't finite.

    The loss shows that training has diverged one step after the weights; a checkpoint in between
    would replace the last good one in ``last_checkpoint``.
    """

    def save(self, name: str, **kwargs) -> None:
        """As in the base class.

        Raises:
            FloatingPointError: a tensor of the model has an infinite or NaN element.
        """
        for key, tensor in self.model.state_dict().items():
            if not tensor.isfinite().all():
                raise FloatingPointError(
                    f"{key} became infinite or NaN, so {name}.pth isn't saved; {_AFTER_DIVERGENCE}"
                )
        super().save(name, **kwargs)


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

    With several processes each computes its share of a batch, on a CUDA device of its own or all on
    the CPU. Gradients are the mean of theirs, and so are the running statistics of batch norms.
    """

    def __init__(self, cfg):
        """
        Args:
            cfg: the config of the training.

        Raises:
            ValueError: the config asks for what this machine or number of processes can't do.
        """
        # Not DefaultTrainer's own: it hands DDP a CUDA device whatever MODEL.DEVICE is.
        TrainerBase.__init__(self)
        _refuse_impossible(cfg)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        self._recorder = TrainingRecorder(cfg)
        self.cfg = cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        if cfg.MODEL.REGION_DH.FEATURE_CACHE:
            # After the optimizer is built, so that checkpoints fit a training from images, too.
            FeatureCache(cfg).freeze(model)
        devices = [comm.get_local_rank()] if cfg.MODEL.DEVICE.startswith("cuda") else None
        # No broadcast of buffers: it would hang an evaluation in which ranks have unlike shares.
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=devices)
        trainer = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer(model, self.build_train_loader(cfg), optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = FiniteCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.checkpointer.add_checkpointable(KEY, self._recorder)
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    def resume_or_load(self, resume=True):
        resumed = resume and self.checkpointer.has_checkpoint()
        super().resume_or_load(resume)
        self._recorder.begin(resumed)
        if self.cfg.MODEL.REGION_DH.FEATURE_CACHE:
            cache, model = FeatureCache(self.cfg), _unwrap(self.model)
            for name in self.cfg.DATASETS.TRAIN:
                cache.ensure(model, name, mirrored=cache.mirrored)
            self._trainer.reset_data_loader(lambda: cache.train_loader(model))

    def run_step(self):
        """One iteration.

        Raises:
            FloatingPointError: training has diverged; the text names the iteration and the losses.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            raise FloatingPointError(_divergence(str(error), self.iter)) from error
        _average_running_statistics(self.model)

    def build_hooks(self):
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
    def build_train_loader(cls, cfg):
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        if cfg.MODEL.REGION_DH.FEATURE_CACHE:
            return FeatureCache(cfg).test_loader(dataset_name)
        adopt(dataset_name)
        mapper = StrictMapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

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
            return COCOBoxEvaluator(
                dataset_name, output_dir=os.path.join(output_folder, dataset_name)
            )
        if kind != "regiondh_retrieval":
            raise RegionDHError(
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
            exclude_self=node.EXCLUDE_SELF,
        )
        evaluators: list[DatasetEvaluator] = [retrieval]
        queries = metadata.query_datasets
        kinds = [MetadataCatalog.get(name).get("evaluator_type", None) for name in queries]
        if node.BOX_AP and kinds in (["pascal_voc"], ["coco"]):
            box_ap = cls.build_evaluator(cfg, queries[0], output_folder)
            evaluators.append(RoleFilter("query", box_ap))
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


def _refuse_impossible(cfg) -> None:
    processes = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % processes:
        raise RegionDHError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is no multiple of the {processes} "
            "processes, of which each takes as many images"
        )
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise RegionDHError(
            f"SOLVER.AMP.ENABLED trains on CUDA devices only, and MODEL.DEVICE is "
            f"{cfg.MODEL.DEVICE}; set it to False"
        )


def _divergence(text: str, iteration: int) -> str:
    """One line on a training that has diverged, of Detectron2's text, which may be several."""
    losses = _NOT_FINITE.findall(text)
    what = ", ".join(f"{name} is {value}" for name, value in losses) or text
    return f"training has diverged at iteration {iteration}: {what}; {_AFTER_DIVERGENCE}"


def _average_running_statistics(model: nn.Module) -> None:
    """Give every process the mean of all processes' running statistics of batch norms, in place.

    Each process updates them by its own share of the batch. Left alone they would drift apart, so
    that a code would depend on the process that computes it.
    """
    if comm.get_world_size() == 1:
        return
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    buffers = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
    if not buffers:
        return
    mean = torch.cat(buffers)
    distributed.all_reduce(mean)
    mean /= comm.get_world_size()
    for buffer, part in zip(buffers, mean.split([len(b) for b in buffers]), strict=True):
        buffer.copy_(part)
