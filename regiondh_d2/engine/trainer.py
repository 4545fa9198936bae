"""The trainer: Detectron2's, with our checkpointer, learning-rate factors and evaluators."""

import logging
import os
import re
import warnings
import weakref
from collections.abc import Iterator

import torch
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.engine.hooks import PeriodicWriter
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoint import (
    has_last_checkpoint,
    model_fingerprint,
)
from ..config import code_settings
from ..data.catalog import adopt
from ..data.proposals import dicts_with_proposals
from ..data.train_stream import ResumableLoader, number_from
from ..data.training import StrictMapper, build_train_loader
from ..evaluation import COCOBoxEvaluator, RetrievalEvaluator, RoleFilter, VOCBoxEvaluator
from ..utils.errors import RegionDHError
from ..utils.shortage import refuse_if_short
from .checkpoints import (
    AFTER_DIVERGENCE,
    FiniteCheckpointer,
    QueueState,
    ResumableBestCheckpointer,
)
from .defaults import asked_of
from .extraction import class_weights_of
from .network import build_network, learns_from_boxes
from .optimizer import build_optimizer, freeze_parts
from .training_folder import training_lock
from .training_record import KEY, TrainingRecorder

__all__ = ["RegionDHTrainer", "retrieval_evaluators"]

# A loss in Detectron2's text of a training that has diverged; NumPy 2 adds its type to the value.
_NOT_FINITE = re.compile(r"'(\w+)': (?:np\.float64\()?(-?(?:nan|inf))")


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
        self._may_go_on = False
        _refuse_impossible(cfg)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        self._recorder = TrainingRecorder(cfg)
        self.cfg = cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER

        model = self.build_model(cfg)
        freeze_parts(cfg, model)  # whatever optimizer a subclass builds
        optimizer = self.build_optimizer(cfg, model)
        network = self.wrap_model(cfg, model)
        devices = [comm.get_local_rank()] if cfg.MODEL.DEVICE.startswith("cuda") else None
        # No broadcast of buffers: it would hang an evaluation in which ranks have unlike shares.
        with warnings.catch_warnings():
            # The newest PyTorch has another name for it, which older ones don't know.
            warnings.simplefilter("ignore", FutureWarning)
            network = create_ddp_model(network, broadcast_buffers=False, device_ids=devices)
        trainer = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer(network, self.build_train_loader(cfg), optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = FiniteCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.checkpointer.add_checkpointable(KEY, self._recorder)
        queue = getattr(getattr(model, "roi_heads", None), "code_queue", None)
        if queue is not None and queue.size:
            self.checkpointer.add_checkpointable("code_queue", QueueState(queue))
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg):
        """As in the base class.

        Raises:
            RegionDHError: the network can't be built, see :func:`.network.build_network`.
        """
        model = build_network(cfg)
        logging.getLogger(__name__).info(f"Model:\n{model}")
        return model

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def wrap_model(cls, cfg, model: nn.Module) -> nn.Module:
        """What a model trains as: itself, unless a subclass puts it into something else.

        Raises:
            RegionDHError: ``MODEL.REGION_DH.FEATURE_CACHE`` is set, which this class doesn't read.
        """
        if cfg.MODEL.REGION_DH.FEATURE_CACHE:
            raise RegionDHError(
                "MODEL.REGION_DH.FEATURE_CACHE is set, which only CachedHeadsTrainer reads: use "
                "regiondh_d2.engine.trainer_class(cfg), or `regiondh train`"
            )
        return model

    @classmethod
    def model_of(cls, network: nn.Module) -> nn.Module:
        """The model in what :meth:`wrap_model` made, or in ``DistributedDataParallel``."""
        if isinstance(network, nn.parallel.DistributedDataParallel):
            return network.module
        return network

    def resume_or_load(self, resume=True):
        """As :meth:`DefaultTrainer.resume_or_load`.

        Raises:
            WeightsError: a file is missing, damaged, or doesn't fit; see
                :class:`RegionDHCheckpointer`.
        """
        asked = asked_of(self.cfg)
        if resume and asked.resume and not has_last_checkpoint(self.cfg.OUTPUT_DIR):
            logging.getLogger(__name__).warning(
                "--resume: no checkpoint in %s, so training starts anew", self.cfg.OUTPUT_DIR
            )
        # Where nothing will be trained, no part may stay random.
        self.checkpointer.whole = asked.eval_only
        resumed = resume and self.checkpointer.has_checkpoint()
        super().resume_or_load(resume)
        self._skip_seen_batches()
        self._may_go_on = resume
        self._recorder.begin(resumed)

    def _skip_seen_batches(self) -> None:
        if isinstance(self._trainer.data_loader, ResumableLoader):
            self._trainer.data_loader.skip(self.start_iter)

    def load_state_dict(self, state_dict):
        """As in the base class.

        Raises:
            RegionDHError: the state is that of a training with another config.
        """
        try:
            super().load_state_dict(state_dict)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            refuse_if_short(error)
            raise RegionDHError(
                f"its state of the optimizer doesn't fit ({' '.join(str(error).split())}): it is "
                "of another config, perhaps with other MODEL.REGION_DH.LR_FACTORS"
            ) from error

    def train(self):
        """As :meth:`DefaultTrainer.train`.

        Raises:
            RegionDHError: the command line that the config came from asked for something else, or
                ``TEST.RETRIEVAL.DATABASE_CODES`` would be compared with the codes of a network that
                has changed meanwhile; or another training writes into ``OUTPUT_DIR``.
        """
        asked = asked_of(self.cfg)
        if asked.eval_only:
            raise RegionDHError(
                "--eval-only was given, but this script trains: call test() instead, or use "
                "`regiondh train`, which imports your datasets with --import MODULE_OR_FILE"
            )
        if asked.resume and not self._may_go_on:
            raise RegionDHError(
                "--resume was given, but this script starts anew: call resume_or_load(resume=True) "
                "first, or use `regiondh train`, which imports your datasets with --import "
                "MODULE_OR_FILE"
            )
        if self.cfg.TEST.RETRIEVAL.DATABASE_CODES and self.cfg.DATASETS.TEST:
            raise RegionDHError(
                "TEST.RETRIEVAL.DATABASE_CODES holds the codes of one network, and training makes "
                "another: set it with --eval-only, or to ''"
            )
        if not comm.is_main_process():
            return super().train()
        os.makedirs(self.cfg.OUTPUT_DIR, exist_ok=True)
        with training_lock(self.cfg.OUTPUT_DIR):
            return super().train()

    def run_step(self):
        """One iteration.

        With a ``SEED`` of 0 or more its random numbers follow from the seed and its number, so that
        a training that is resumed ends with the network that it would have ended with.

        Raises:
            FloatingPointError: training has diverged; the text names the iteration and the losses.
        """
        if self.cfg.SEED >= 0:
            torch.manual_seed(number_from(self.cfg.SEED, comm.get_rank(), self.iter))
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
            best = ResumableBestCheckpointer(self.cfg, self.checkpointer, names[0])
            writer = next(i for i, h in enumerate(hooks) if isinstance(h, PeriodicWriter))
            hooks.insert(writer, best)
        return hooks

    @classmethod
    def build_train_loader(cls, cfg):
        return build_train_loader(cfg, learns_from_boxes(cfg))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        adopt(dataset_name)
        mapper = StrictMapper(cfg, is_train=False)
        if cfg.MODEL.LOAD_PROPOSALS:
            files = dict(zip(cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST, strict=True))
            records = dicts_with_proposals(dataset_name, files[dataset_name])
        else:
            records = get_detection_dataset_dicts(dataset_name, filter_empty=False)
        if _reads_queries_alone(cfg, dataset_name):
            records = [record for record in records if record["role"] != "database"]
        return build_detection_test_loader(
            records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
        )

    @classmethod
    def build_evaluator(
        cls, cfg, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """The evaluator for a dataset's ``evaluator_type``.

        :meth:`test` tells it which network it measures, so that subclasses may override this as in
        any Detectron2 project.

        Raises:
            ValueError: the dataset has no type that is known here.
        """
        output_folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        metadata = MetadataCatalog.get(dataset_name)
        kind = metadata.get("evaluator_type", None)
        if kind in ("pascal_voc", "coco"):
            return _box_evaluator(dataset_name, output_folder)
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
            bits=cfg.MODEL.REGION_DH.BITS_IMAGE or cfg.MODEL.REGION_DH.BITS,
            config_name=os.path.join(cfg.OUTPUT_DIR, "config.yaml"),
            settings=code_settings(cfg, activations=True, features=False, instances=True),
            instance_min_score=node.INSTANCE_MIN_SCORE,
            exclude_self=node.EXCLUDE_SELF,
        )
        evaluators: list[DatasetEvaluator] = [retrieval]
        queries = metadata.query_datasets
        kinds = [MetadataCatalog.get(name).get("evaluator_type", None) for name in queries]
        if node.BOX_AP and kinds in (["pascal_voc"], ["coco"]):
            evaluators.append(RoleFilter("query", _box_evaluator(queries[0], output_folder)))
        return DatasetEvaluators(evaluators)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """As :meth:`DefaultTrainer.test`; code files carry the fingerprint of the model."""
        model = cls.wrap_model(cfg, cls.model_of(model))
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        elif isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        retrieval = [found for e in evaluators for found in retrieval_evaluators(e)]
        if retrieval:
            measured = cls.model_of(model)
            fingerprint, class_weights = model_fingerprint(measured), class_weights_of(measured)
            for evaluator in retrieval:
                evaluator.set_model(fingerprint, class_weights)
        return super().test(cfg, model, evaluators)


def _box_evaluator(dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """Box AP on a dataset of ``evaluator_type`` pascal_voc or coco."""
    if MetadataCatalog.get(dataset_name).evaluator_type == "pascal_voc":
        return VOCBoxEvaluator(dataset_name)
    return COCOBoxEvaluator(dataset_name, output_dir=os.path.join(output_folder, dataset_name))


def _reads_queries_alone(cfg, dataset_name: str) -> bool:
    """Whether a dataset's database is coded already, in ``TEST.RETRIEVAL.DATABASE_CODES``."""
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    return bool(cfg.TEST.RETRIEVAL.DATABASE_CODES) and kind == "regiondh_retrieval"


def retrieval_evaluators(evaluator: DatasetEvaluator) -> Iterator[RetrievalEvaluator]:
    """The evaluators of retrieval among an evaluator and those that it joins."""
    if isinstance(evaluator, RetrievalEvaluator):
        yield evaluator
    elif isinstance(evaluator, DatasetEvaluators):
        for part in evaluator._evaluators:
            yield from retrieval_evaluators(part)


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
    return f"training has diverged at iteration {iteration}: {what}; {AFTER_DIVERGENCE}"


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
