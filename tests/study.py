"""Tables, results and code files of small studies, made up without any training."""

import json
from pathlib import Path

import numpy as np
import yaml

from builders import code_set
from experiments.comparison import differences
from experiments.result_files import ResultFolder
from regiondh_d2.evaluation.retrieval_evaluator import rank_code_sets
from regiondh_d2.retrieval.code_store import write_codes

CONFIG = (
    Path(__file__).parents[1] / "configs/quick_schedules/regiondh_effnetlite0_scenes_instant.yaml"
)
PREFIX = "study_test_"  # of datasets
TOPK = 10
SHOWN = ["MAP@1000", "MAP_min@1000", "NDCG@1000", "ACG@1000"]
BOUNDS = ["MAP_min@1000-pessimistic", "MAP_min@1000-optimistic"]
RESULT = {
    "metrics": {"set": dict.fromkeys(SHOWN + BOUNDS, 0.5)},
    "box_ap": {},
    "minutes": 1.0,
}


def write_table(folder, **rows):
    """A table of rows of 8 bits and seed 0, where nothing else is given."""
    path = folder / "table.yaml"
    opts = ["SOLVER.CHECKPOINT_PERIOD", 1]
    defaults = {"config": str(CONFIG), "bits": [8], "seeds": [0], "opts": opts}
    path.write_text(yaml.safe_dump({"defaults": defaults, "rows": rows}, sort_keys=False))
    return path


def write_result(folder, run, **changes):
    """A result of a run without any training."""
    ResultFolder(folder).write(run, {**RESULT, **changes})


def rewrite(folder, row, damage):
    """Change the text of a row's file."""
    file = ResultFolder(folder).row_file(row)
    file.write_text(damage(file.read_text()))
    return file


def entry_of(folder, run):
    """The entry of a run in its row's file, unchecked."""
    content = json.loads(ResultFolder(folder).row_file(run.row).read_text())
    (entry,) = (e for e in content["runs"] if (e["bits"], e["seed"]) == (run.bits, run.seed))
    return entry


def measure(folder, run, noise, data="the same"):
    """Code files and a result as a training leaves them: codes are labels with wrong bits.

    Returns the metrics, of 30 queries of which one has no relevant image.
    """
    rng = np.random.default_rng(0)  # the same labels in every run
    labels = [rng.random((count, run.bits)) < 0.3 for count in (30, 40)]
    for known in labels:
        known[:, 0] |= ~known.any(axis=1)
    labels[0][3] = False
    rng = np.random.default_rng(run.seed + 1)
    sets = []
    for role, known in zip(("query", "database"), labels, strict=True):
        sets.append(code_set(known ^ (rng.random(known.shape) < noise), labels=known))
        write_codes(folder / f"output/{run.name}/inference/set/{role}.h5", sets[-1])
    metrics = rank_code_sets(*sets, (TOPK, 1000))[0].metrics
    write_result(folder / "results", run, metrics={"set": metrics}, data_sha256={"set": data})
    return metrics


def compare(folder, rows, earlier=()):
    """Each row against the first one, by what :func:`measure` left in the folder."""
    runs = [run for row in rows for run in row.runs()]
    results = ResultFolder(folder / "results")
    return differences(runs, rows[0], folder / "output", results, "set", TOPK, earlier)


def entries(row, against, seeds):
    """Differences of two rows at 8 bits, as an older command wrote them."""
    values = {"row": row, "against": against, "bits": 8, "seeds": seeds}
    values |= {"difference": 0.5, "low": 0.25, "high": 0.75}
    return [{**values, "metric": metric} for metric in ("MAP", "MAP_min", "NDCG", "ACG")]
