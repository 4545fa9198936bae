"""What a training saves: finite weights, and the best ones on a ``_dev`` dataset."""

import itertools
import math
from pathlib import Path

from detectron2.engine.hooks import BestCheckpointer

from ..checkpoint import RegionDHCheckpointer, WeightsError, read_weights
from ..modeling.code_queue import CodeQueue

__all__ = [
    "AFTER_DIVERGENCE",
    "BEST",
    "FiniteCheckpointer",
    "QueueState",
    "ResumableBestCheckpointer",
]

# In model_best.pth: the best metric, its iteration, and what was measured how.
BEST = "regiondh_best"

AFTER_DIVERGENCE = (
    "lower SOLVER.BASE_LR or enable SOLVER.CLIP_GRADIENTS, and start again, from the last "
    "checkpoint as MODEL.WEIGHTS if you like"
)


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
                    f"{key} became infinite or NaN, so {name}.pth isn't saved; {AFTER_DIVERGENCE}"
                )
        super().save(name, **kwargs)


class QueueState:
    """Puts a queue of codes into checkpoints: it belongs to a training, not to a network."""

    def __init__(self, queue: CodeQueue):
        self._queue = queue

    def state_dict(self) -> dict:
        return self._queue.training_state()

    def load_state_dict(self, state: dict) -> None:
        self._queue.load_training_state(state)


class ResumableBestCheckpointer(BestCheckpointer):
    """A :class:`BestCheckpointer` for which the best metric is that of the file on the disk.

    Detectron2's forgets it when a training is resumed, and saves its file before it updates it.
    Here ``model_best.pth`` says what it reached (:data:`BEST`), and a training that is resumed
    reads it there, whatever checkpoint it goes on from and wherever it was interrupted. A file that
    doesn't say so, or of another metric, is not compared and not replaced: it gets another name.
    """

    best_metric: float | None
    best_iter: int | None

    def __init__(self, cfg, checkpointer: RegionDHCheckpointer, dataset: str):
        """
        Args:
            cfg: the config of the training.
            checkpointer: saves the model, into its folder.
            dataset: the retrieval dataset whose metric decides.
        """
        node = cfg.TEST.RETRIEVAL
        metric = f"retrieval/MAP_min@{node.TOPK}"
        super().__init__(cfg.TEST.EVAL_PERIOD, checkpointer, metric, "max")
        others = ("BOX_AP", "INSTANCE_MIN_SCORE")  # do not change the metric
        settings = {k: v for k, v in node.items() if k not in others}
        self._measured = {"dataset": dataset, "metric": metric, **settings}

    def before_train(self) -> None:
        if self.trainer.start_iter > 0:
            self._read_best(Path(self._checkpointer.save_dir, f"{self._file_prefix}.pth"))

    def _read_best(self, path: Path) -> None:
        if not path.is_file():
            return
        try:
            best = read_weights(path)[BEST]
            self.best_metric, self.best_iter = float(best["value"]), int(best["iteration"])
            if best["measured"] == self._measured:
                return
            why = "is the best by another metric or of other data"
        except (WeightsError, KeyError, TypeError, ValueError):
            why = "doesn't say what it reached"
        self.best_metric = self.best_iter = None
        numbers = itertools.count(1)
        other = next(p for n in numbers if not (p := path.with_stem(f"{path.stem}_{n}")).exists())
        path.rename(other)
        tag = path.with_name("last_checkpoint")
        if tag.is_file() and tag.read_text().strip() == path.name:
            self._checkpointer.tag_last_checkpoint(other.name)
        self._logger.warning(f"{path} {why}, and is kept as {other.name}")

    def _best_checking(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self._val_metric, (None, None))
        if value is None or not math.isfinite(value):
            self._logger.warning(f"{self._val_metric} is {value}: {self._file_prefix} is not saved")
        elif self.best_metric is not None and value <= self.best_metric:
            self._logger.info(
                f"{self._val_metric} is {value:.5f}, not above the best, {self.best_metric:.5f} at "
                f"iteration {self.best_iter}"
            )
        else:
            best = {"value": float(value), "iteration": iteration, "measured": self._measured}
            self._checkpointer.save(self._file_prefix, iteration=iteration, **{BEST: best})
            self.best_metric, self.best_iter = best["value"], iteration
            self._logger.info(f"{self._val_metric} is {value:.5f}, the best: {self._file_prefix}")

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Passes over the state in checkpoints of version 0.1: it is older than their model."""
