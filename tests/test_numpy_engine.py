"""The engine of numpy: codes of any length, and of more than one block."""

import pytest

from index_oracle import assert_answers, make_codes, sort_pairs
from regiondh_d2.retrieval.engines import create_index, numpy_engine


@pytest.mark.parametrize("bits", [1, 8, 20, 33, 48, 64, 100, 128, 200, 256, 300])
def test_any_length(monkeypatch, bits):
    monkeypatch.setattr(numpy_engine, "_BLOCK", 300)  # several blocks, the last one not full
    index = create_index(bits, "numpy")
    codes, queries = make_codes(2000, bits), make_codes(40, bits, seed=1)
    index.add(codes)
    for k in (1, 7, 150, 1999, 2000):
        assert_answers(index, queries, k, sort_pairs(queries, codes, bits, k))
