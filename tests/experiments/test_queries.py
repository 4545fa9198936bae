"""Each query's metrics, kept or measured, and code files of other networks."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from experiments.queries import per_query, read_run_codes
from experiments.result_files import ResultFolder
from regiondh_d2.checkpoint import model_fingerprint
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.utils.errors import RegionDHError
from study import SHOWN, compare, entry_of, measure


@pytest.fixture
def results(tmp_path):
    return ResultFolder(tmp_path / "results")


def test_kept_values_come_first_and_are_completed_from_code_files(two_rows, results, tmp_path):
    """Another cut-off joins what is kept."""
    run = two_rows[0].runs()[0]
    measure(tmp_path, run, 0.1)
    output = tmp_path / "output"
    kept = {f"set/{name}": np.arange(30, dtype=np.float16) for name in SHOWN}
    results.write_per_query(run, kept)
    result = entry_of(results.path, run)
    result["metrics"]["set"] |= dict.fromkeys(SHOWN, 14.5)
    results.write(run, result)
    assert (per_query(run, output, results, "set", 1000)["ACG"] == np.arange(30)).all()
    other = per_query(run, output, results, "set", 5)
    assert np.flatnonzero(np.isnan(other["ACG"])).tolist() == [3]
    shutil.rmtree(output)
    np.testing.assert_array_equal(per_query(run, output, results, "set", 5)["ACG"], other["ACG"])
    assert (per_query(run, output, results, "set", 1000)["ACG"] == np.arange(30)).all()
    assert per_query(run, output, results, "another", 5) is None


@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b"text", lambda b: b[:300], lambda b: b[:99] + bytes(50) + b[149:]],
)
def test_a_damaged_file_of_kept_values_is_named(two_rows, results, tmp_path, damage):
    for row in two_rows:
        measure(tmp_path, row.runs()[0], 0.1)
    compare(tmp_path, two_rows)
    file = results.per_query_file(two_rows[0].runs()[0])
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match="a_8_seed0.npz is damaged .* or delete it"):
        compare(tmp_path, two_rows)
    file.unlink()
    assert len(compare(tmp_path, two_rows)[0]) == 4


def test_kept_values_of_another_network_are_refused(two_rows, results, tmp_path):
    """An older file beside a new result; and code files of another network."""
    for row in two_rows:
        measure(tmp_path, row.runs()[0], 0.1)
    run = two_rows[0].runs()[0]
    compare(tmp_path, two_rows)
    measure(tmp_path, run, 0.3)
    with pytest.raises(RegionDHError, match=r"a_8_seed0.npz is of another network than the result"):
        compare(tmp_path, two_rows)
    results.per_query_file(run).unlink()
    compare(tmp_path, two_rows)
    result = entry_of(results.path, run)
    measure(tmp_path, run, 0.2)  # new code files, to which the old result is put back
    results.write(run, result)
    results.per_query_file(run).unlink()
    with pytest.raises(RegionDHError, match=r"inference/set is of another network than the result"):
        compare(tmp_path, two_rows)
    assert not results.per_query_file(run).exists()


def test_code_files_of_another_network_than_the_checkpoint_are_refused(two_rows, results, tmp_path):
    run = two_rows[0].runs()[0]
    measure(tmp_path, run, 0.1)
    network = torch.nn.Linear(2, 2)
    torch.save({"model": network.state_dict()}, tmp_path / f"output/{run.name}/model_final.pth")
    for role in ("query", "database"):
        file = tmp_path / f"output/{run.name}/inference/set/{role}.h5"
        codes = dataclasses.replace(read_codes(file), model_fingerprint=model_fingerprint(network))
        write_codes(file, codes)
    assert read_run_codes(run, tmp_path / "output", "set") is not None
    write_codes(file, dataclasses.replace(codes, model_fingerprint="e" * 64))
    with pytest.raises(
        RegionDHError, match=r"database.h5 was encoded by model eeeeeeeeeeee, not by "
    ):
        read_run_codes(run, tmp_path / "output", "set")
