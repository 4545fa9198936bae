"""The best model is kept, whatever happens to the training."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from regiondh_d2 import add_regiondh_config
from regiondh_d2.checkpoint import RegionDHCheckpointer
from regiondh_d2.engine.checkpoints import BEST, ResumableBestCheckpointer


class Training:
    """What the hook sees of a training: one evaluation after the other."""

    def __init__(self, folder, *opts, start=0, dataset="t_dev"):
        cfg = get_cfg()
        add_regiondh_config(cfg)
        cfg.merge_from_list(["TEST.EVAL_PERIOD", 1, *opts])
        self.metric = f"retrieval/MAP_min@{cfg.TEST.RETRIEVAL.TOPK}"
        self.folder, self.latest = folder, {}
        self.model = nn.Linear(1, 1)
        self.checkpointer = RegionDHCheckpointer(self.model, str(folder))
        self.hook = ResumableBestCheckpointer(cfg, self.checkpointer, dataset)
        storage = SimpleNamespace(latest=lambda: self.latest)
        self.hook.trainer = SimpleNamespace(
            storage=storage, start_iter=start, iter=start, max_iter=10**6
        )
        self.hook.before_train()

    def evaluate(self, value):
        """An iteration with an evaluation; the weight of the model is the metric."""
        trainer = self.hook.trainer
        self.latest[self.metric] = (value, trainer.iter)
        nn.init.constant_(self.model.weight, value)
        self.hook.after_step()
        trainer.iter += 1
        return self


def best(folder):
    """What model_best.pth holds: the metric of its weights, and the one that it tells."""
    data = torch.load(folder / "model_best.pth", weights_only=True)
    return round(data["model"]["weight"].item(), 6), data[BEST]["value"]


def test_after_a_resume_a_worse_model_never_replaces_the_best(tmp_path):
    Training(tmp_path).evaluate(0.6).evaluate(0.8)
    assert best(tmp_path) == (0.8, 0.8)
    Training(tmp_path, start=2).evaluate(0.7)
    assert best(tmp_path) == (0.8, 0.8)
    # Several resumes, also from a checkpoint before the best one.
    Training(tmp_path, start=1).evaluate(0.79)
    Training(tmp_path, start=1).evaluate(0.8)
    assert best(tmp_path) == (0.8, 0.8)
    Training(tmp_path, start=3).evaluate(0.75).evaluate(0.9).evaluate(0.85)
    Training(tmp_path, start=6).evaluate(0.87)
    assert best(tmp_path) == (0.9, 0.9)
    assert [p.name for p in tmp_path.glob("*.pth")] == ["model_best.pth"]


def test_a_kill_between_evaluation_and_saving_loses_nothing(tmp_path, monkeypatch):
    training = Training(tmp_path).evaluate(0.6)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            training.evaluate(0.8)
    assert best(tmp_path) == (0.6, 0.6)
    Training(tmp_path, start=1).evaluate(0.7)
    assert best(tmp_path) == (0.7, 0.7)


def test_a_missing_best_model_starts_anew(tmp_path):
    Training(tmp_path).evaluate(0.8)
    (tmp_path / "model_best.pth").unlink()
    Training(tmp_path, start=1).evaluate(0.7)
    assert best(tmp_path) == (0.7, 0.7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_metric_that_is_no_number_is_never_the_best(tmp_path, value, caplog):
    Training(tmp_path).evaluate(value)
    assert not (tmp_path / "model_best.pth").exists()
    Training(tmp_path).evaluate(0.5).evaluate(value)
    assert best(tmp_path) == (0.5, 0.5)


def by_another_cutoff(path):
    return ("TEST.RETRIEVAL.TOPK", 5)


def of_version_0_1(path):
    data = torch.load(path, weights_only=True)
    del data[BEST]
    torch.save(data, path)
    return ()


def damaged(path):
    path.write_bytes(path.read_bytes()[:300])
    return ()


@pytest.mark.parametrize("change", [by_another_cutoff, of_version_0_1, damaged])
def test_a_best_model_that_cannot_be_compared_is_kept(tmp_path, change, caplog):
    path = tmp_path / "model_best.pth"
    Training(tmp_path).evaluate(0.8)
    opts = change(path)
    content = path.read_bytes()
    (tmp_path / "model_best_1.pth").write_bytes(b"older")
    Training(tmp_path, *opts, start=1).evaluate(0.7)
    assert best(tmp_path) == (0.7, 0.7)
    assert (tmp_path / "model_best_1.pth").read_bytes() == b"older"
    assert (tmp_path / "model_best_2.pth").read_bytes() == content
    assert "is kept as model_best_2.pth" in caplog.text


def test_the_last_checkpoint_follows_a_best_model_that_is_renamed(tmp_path):
    Training(tmp_path).evaluate(0.8)
    assert (tmp_path / "last_checkpoint").read_text() == "model_best.pth"
    Training(tmp_path, start=1, dataset="t_other_dev")
    assert (tmp_path / "last_checkpoint").read_text() == "model_best_1.pth"


def test_a_training_that_starts_anew_has_a_best_of_its_own(tmp_path):
    Training(tmp_path).evaluate(0.8)
    Training(tmp_path).evaluate(0.3)  # as Detectron2 replaces the other files of the folder
    assert best(tmp_path) == (0.3, 0.3)
