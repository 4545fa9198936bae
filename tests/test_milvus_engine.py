"""The engine in a server; see ``make test-milvus``. test_hamming_index.py has the common suite."""

import os
import signal
import socketserver
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from index_oracle import HAS_MILVUS, MILVUS, assert_answers, make_codes, sort_pairs
from indexing import make_items
from regiondh_d2.retrieval.code_store import write_codes
from regiondh_d2.retrieval.engines import MilvusError, MilvusIndex, create_index, milvus_engine
from regiondh_d2.retrieval.index_folder import read_index_folder, write_index_folder
from regiondh_d2.retrieval.queries import Query, QueryObject, SearchOptions
from regiondh_d2.retrieval.service import SearchService
from regiondh_d2.utils.errors import MissingPackageError, RegionDHError

needs_milvus = pytest.mark.skipif(not HAS_MILVUS, reason="pymilvus isn't installed")


@pytest.mark.skipif(HAS_MILVUS, reason="pymilvus is installed")
def test_without_its_package():
    with pytest.raises(MissingPackageError, match=r"pip install 'regiondh_d2\[milvus\]'"):
        create_index(8, "milvus", uri="http://127.0.0.1:1", collection="a")


def test_what_it_needs():
    with pytest.raises(RegionDHError, match="needs the name of a collection"):
        create_index(8, "milvus", uri="http://127.0.0.1:1")
    with pytest.raises(RegionDHError, match="needs the server's uri"):
        create_index(8, "milvus", collection="a")
    with pytest.raises(RegionDHError, match="REGIONDH_MILVUS_TOKEN"):
        create_index(8, "milvus", uri="http://me:secret@127.0.0.1:1", collection="a")
    with pytest.raises(RegionDHError, match="nprobe without nlist"):
        create_index(8, "milvus", uri="a.db", collection="a", nprobe=3)


@needs_milvus
class TestMilvus:
    def test_ties_that_the_limit_cuts_are_searched_in_halves(self, new_index, monkeypatch):
        """With a limit of 100 rows an answer, as a server has one of 16,384."""
        codes, queries = make_codes(900, 20), make_codes(4, 20, seed=1)
        index = new_index(20, "milvus")
        index.add(codes)
        monkeypatch.setattr(milvus_engine, "_LIMIT", 100)
        for k in (60, 250):
            assert_answers(index, queries, k, sort_pairs(queries, codes, 20, k))

    def test_many_comparisons_are_asked_for_in_several_calls(self, new_index, monkeypatch):
        codes = make_codes(200, 20)
        index = new_index(20, "milvus")
        index.add(codes)
        search, calls = type(index._remote).search, []

        def note(remote, asked, *args, **options):
            calls.append(len(asked))
            return search(remote, asked, *args, **options)

        monkeypatch.setattr(type(index._remote), "search", note)
        monkeypatch.setattr(milvus_engine, "_COMPARISONS", 450)
        assert_answers(index, codes[:5], 3, sort_pairs(codes[:5], codes, 20, 3))
        assert calls[:3] == [2, 2, 1]

    def test_what_was_removed_is_read_in_few_calls(self, new_index, monkeypatch):
        """However many rows there are; also where more were removed than a call gives."""
        monkeypatch.setattr(milvus_engine, "_LIMIT", 100)
        codes = make_codes(2000, 20)
        index = new_index(20, "milvus")
        index.add(codes)
        query, calls = MilvusIndex._query, []
        monkeypatch.setattr(
            MilvusIndex, "_query", lambda *args: calls.append(args[1:]) or query(*args)
        )
        new_index(20, "milvus", like=index)
        assert len(calls) == 1  # the state alone
        removed = np.arange(300, 550)
        index.remove(removed)
        again = new_index(20, "milvus", like=index)
        assert (len(again), again.next_row) == (1750, 2000)
        assert not again.holds(removed).any()
        assert len(calls) < 12

    def test_codes_that_the_server_has_lost_are_missed(self, new_index):
        """Not those that another process has removed since."""
        codes = make_codes(50, 20)
        index = new_index(20, "milvus")
        index.add(codes)
        reader = new_index(20, "milvus", like=index)
        index.remove([7])
        rows = np.delete(np.arange(50), 7)
        expected = sort_pairs(codes[:1], codes[rows], 20, 50, rows.tolist())
        found = reader.search(codes[:1], 50)
        np.testing.assert_array_equal([part[:, :49] for part in found], expected)
        assert found[1][0, 49] == -1
        index._remote.delete("row == 3")
        with pytest.raises(MilvusError, match="has lost some of its 49 codes: build the index"):
            reader.search(codes[:1], 50)
        assert index.search(codes[:1], 3)[1].shape == (1, 3)

    def test_a_second_writer_is_refused(self, new_index):
        """Its codes would replace those that it doesn't know."""
        codes, more = make_codes(60, 20), make_codes(9, 20, seed=1)
        index = new_index(20, "milvus")
        index.add(codes[:50])
        other = new_index(20, "milvus", like=index)
        index.add(codes[50:])
        with pytest.raises(MilvusError, match="another process has added to collection .* open"):
            other.add(more)
        np.testing.assert_array_equal(index.codes, codes)
        again = new_index(20, "milvus", like=index)
        assert again.add(more).tolist() == list(range(60, 69))
        np.testing.assert_array_equal(again.codes, np.concatenate([codes, more]))

    def test_an_add_whose_end_was_not_confirmed_is_repeated(self, new_index, monkeypatch):
        codes = make_codes(30, 20)
        index = new_index(20, "milvus")
        write = MilvusIndex._write_state

        def write_and_fail(self):
            write(self)
            raise MilvusError("no answer")

        monkeypatch.setattr(MilvusIndex, "_write_state", write_and_fail)
        with pytest.raises(MilvusError, match="no answer"):
            index.add(codes)
        monkeypatch.setattr(MilvusIndex, "_write_state", write)
        assert index.add(codes).tolist() == list(range(30))
        np.testing.assert_array_equal(index.codes, codes)

    def test_a_condition_on_the_server(self, new_index):
        codes, queries = make_codes(300, 20), make_codes(2, 20, seed=1)
        classes = np.arange(300) % 7
        index = new_index(20, "milvus")
        index.add(codes, {"class_id": classes, "class_name": [f"c{i}" for i in classes]})
        rows = np.flatnonzero(classes == 3)
        expected = sort_pairs(queries, codes[rows], 20, 50, rows.tolist())
        for where in ("class_id == 3", 'class_name == "c3"'):
            found = index.search(queries, 50, where)
            np.testing.assert_array_equal(found, expected)

    def test_a_load_that_was_cut_off_goes_on(self, new_index, monkeypatch):
        monkeypatch.setattr(milvus_engine, "_BATCH", 50)
        codes = make_codes(300, 20)
        index = new_index(20, "milvus")
        insert, sent = type(index._remote).insert, []

        def fail(remote, columns, **options):
            if len(sent) == 3:
                raise KeyboardInterrupt
            sent.append(columns[0][0])
            return insert(remote, columns, **options)

        monkeypatch.setattr(type(index._remote), "insert", fail)
        with pytest.raises(KeyboardInterrupt):
            index.add(codes)
        again = new_index(20, "milvus", like=index)
        assert len(again) == 0
        assert again.search(codes[:2], 3)[1].shape == (2, 0)
        sent.clear()
        monkeypatch.setattr(
            type(index._remote),
            "insert",
            lambda remote, columns, **o: sent.append(columns[0][0]) or insert(remote, columns, **o),
        )
        again.add(codes)
        assert sent == [150, 200, 250]  # not the three batches that had arrived
        assert_answers(again, codes[:3], 60, sort_pairs(codes[:3], codes, 20, 60))

    def test_a_batch_that_arrived_though_the_call_failed_is_there_once(
        self, new_index, monkeypatch
    ):
        import pymilvus

        codes = make_codes(100, 20)
        index = new_index(20, "milvus")
        insert, calls = type(index._remote).insert, []

        def late(remote, columns, **options):
            result = insert(remote, columns, **options)
            calls.append(len(columns[0]))
            if len(calls) == 1:
                raise pymilvus.MilvusException(message="connection lost")
            return result

        monkeypatch.setattr(type(index._remote), "insert", late)
        index.add(codes)
        assert len(calls) == 2
        assert_answers(index, codes[:2], 200, sort_pairs(codes[:2], codes, 20, 100))

    @pytest.mark.parametrize(("name", "before"), [("insert", 0), ("insert", 2), ("upsert", 0)])
    def test_a_load_that_failed_can_be_tried_again(self, new_index, monkeypatch, name, before):
        """By the same index, whichever call failed; a server that is full is not waited for."""
        import pymilvus

        codes = make_codes(300, 20)
        monkeypatch.setattr(milvus_engine, "_BATCH", 100)
        index = new_index(20, "milvus")
        call, calls = getattr(type(index._remote), name), []

        def fail(remote, *args, **options):
            calls.append(args)
            if len(calls) > before:
                raise pymilvus.MilvusException(
                    message="quota exceeded[reason=memory quota exceeded, please allocate more]"
                )
            return call(remote, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(type(index._remote), name, fail)
            with pytest.raises(MilvusError, match=r"is full \(quota exceeded.*: give it room"):
                index.add(codes)
        assert len(calls) == before + 1
        assert index.add(codes).tolist() == list(range(300))
        assert_answers(index, codes[:2], 400, sort_pairs(codes[:2], codes, 20, 300))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("auth check failure, please check username", "set REGIONDH_MILVUS_TOKEN to user:pass"),
            ("PrivilegeInsert: permission deny", "refuses access"),
            ("only support HAMMING\nand more", r"refuses the call \(only support HAMMING\)$"),
            ("deny to write, reason: disk quota exceeded", "is full"),
        ],
    )
    def test_failures_that_no_further_try_repairs(self, new_index, monkeypatch, text, message):
        import pymilvus

        index, calls = new_index(20, "milvus"), []

        def refuse(*args, **options):
            calls.append(args)
            raise pymilvus.MilvusException(message=text)

        index.add(make_codes(5, 20))
        monkeypatch.setattr(type(index._remote), "search", refuse)
        with pytest.raises(MilvusError, match=message):
            index.search(make_codes(1, 20), 3)
        assert len(calls) == 1

    @pytest.mark.parametrize(("patience", "expected"), [(300.0, 30), (7.5, 7), (0.5, 1)])
    def test_the_limit_of_a_call_is_one_that_pymilvus_takes(self, new_index, patience, expected):
        """An int: it ignores a float."""
        index = new_index(20, "milvus")
        index._connection.patience = patience
        limits = []
        index._connection.call(lambda timeout: limits.append(timeout))
        assert limits == [expected]
        assert type(limits[0]) is int

    def test_a_call_that_takes_too_long(self, new_index, monkeypatch):
        import grpc

        class TooLate(grpc.RpcError):
            def code(self):
                return grpc.StatusCode.DEADLINE_EXCEEDED

            def details(self):
                return "Deadline Exceeded"

        def wait(*args, **options):
            raise TooLate

        index = new_index(20, "milvus")
        index.add(make_codes(5, 20))
        index._connection.patience = 0.1
        monkeypatch.setattr(type(index._remote), "search", wait)
        with pytest.raises(MilvusError, match=r"answer \(DEADLINE_EXCEEDED: Deadline Exceeded\)"):
            index.search(make_codes(1, 20), 3)

    def test_another_code_length_or_owner_is_refused(self, new_index):
        index = new_index(20, "milvus", owner="a")
        for bits, owner in ((24, "a"), (20, "b")):
            with pytest.raises(RegionDHError, match="name another collection"):
                new_index(bits, "milvus", like=index, owner=owner)

    def test_a_server_that_is_away(self):
        start = time.monotonic()
        with pytest.raises(RegionDHError, match=r"127\.0\.0\.1:9 does not answer .*: start it"):
            create_index(8, "milvus", uri="http://127.0.0.1:9", collection="a", patience=1.0)
        assert time.monotonic() - start < 15

    def test_another_server_than_milvus(self):
        """One that takes a connection and never speaks."""
        with socketserver.TCPServer(("127.0.0.1", 0), Mute) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            uri = f"http://127.0.0.1:{server.server_address[1]}"
            start = time.monotonic()
            with pytest.raises(RegionDHError, match="does not answer .*: start it, or name"):
                create_index(8, "milvus", uri=uri, collection="a", patience=1.0)
            assert time.monotonic() - start < 15
            server.shutdown()


class Mute(socketserver.BaseRequestHandler):
    """Takes what is sent and says nothing."""

    def handle(self):
        self.request.recv(1000)


@needs_milvus
@pytest.mark.skipif(not MILVUS, reason="Milvus Lite has no BIN_IVF_FLAT")
def test_approximate_search_finds_near_codes(new_index):
    codes = make_codes(3000, 64)
    index = new_index(64, "milvus", nlist=16, nprobe=16)
    index.add(codes)
    assert not index.exact
    distances, rows = index.search(codes[:5], 3)
    assert (distances[:, 0] == 0).all()
    assert (np.diff(distances) >= 0).all()
    assert rows.shape == (5, 3)


@needs_milvus
class TestFolder:
    @pytest.fixture
    def options(self, milvus_uri):
        return {"engine": "milvus", "uri": milvus_uri, "collection": f"f{os.urandom(8).hex()}"}

    def test_answers_are_those_of_another_engine(self, tmp_path, options):
        items = make_items(rows=120, found=300)
        write_index_folder(tmp_path / "there", items, **options)
        write_index_folder(tmp_path / "here", items, engine="numpy")
        there, here = (SearchService.open(tmp_path / name) for name in ("there", "here"))
        image = Query("q.jpg", items.codes[:1])
        found = items.instances.codes[5:6]
        one = Query("q.jpg", found, (QueryObject((0.0, 0.0, 9.0, 9.0)),))
        for query in (image, one):
            for topk, class_name in ((15, None), (7, "dog"), (1000, "dog")):
                search = SearchOptions(topk=topk, class_name=class_name)
                answers = [service.search(query, search).answers for service in (there, here)]
                assert answers[0] == answers[1]
                assert answers[0]

    @pytest.mark.parametrize(("names", "asked"), [(None, "dog"), ([], "1")])
    def test_the_server_leaves_out_other_classes(
        self, tmp_path, options, monkeypatch, names, asked
    ):
        """Also those that have no names, and are asked for by their numbers."""
        items = make_items(rows=120, found=300)
        if names is not None:
            items.labels, items.class_names = None, names
        service = SearchService(write_index_folder(tmp_path / "index", items, **options))
        search, conditions = MilvusIndex.search, []

        def note(index, codes, k, where=""):
            conditions.append(where)
            return search(index, codes, k, where)

        monkeypatch.setattr(MilvusIndex, "search", note)
        objects = [QueryObject((0.0, 0.0, 9.0, 9.0))] * 2
        for count in (1, 2):
            query = Query("q.jpg", items.instances.codes[:count], tuple(objects[:count]))
            assert service.search(query, SearchOptions(class_name=asked)).answers
        assert set(conditions) == {"class_id == 1"}

    def test_the_command(self, tmp_path, milvus_uri, load_tool, capsys):
        """The name of the collections is that of the folder; other codes don't replace them."""
        name = f"my index {os.urandom(4).hex()}"
        for folder, seed in (("a", 0), ("b", 1)):
            codes = make_items(rows=30, found=40)
            codes.codes = np.roll(codes.codes, seed, axis=0)
            (tmp_path / folder).mkdir()
            write_codes(tmp_path / folder / "codes.h5", codes)
            words = [str(tmp_path / folder / "codes.h5"), "--engine", "milvus", "--uri", milvus_uri]
            status = load_tool("build_index").main(
                [*words, "--output", str(tmp_path / folder / name)]
            )
            assert status == seed
        assert "name another collection" in capsys.readouterr().err
        assert not (tmp_path / "b" / name).exists()
        folder = read_index_folder(tmp_path / "a" / name)
        assert folder.index("image").collection == f"regiondh_{name.replace(' ', '_')}_image_1"
        # A folder without its collections still gives its codes to other engines.
        for granularity in ("image", "instance"):
            folder.index(granularity).drop()
        rebuild = [str(tmp_path / "a" / name), "--output", str(tmp_path / "c"), "--engine", "numpy"]
        assert load_tool("build_index").main(rebuild) == 0

    def test_generations(self, tmp_path, options):
        import pymilvus

        path = tmp_path / "index"
        for rows in (40, 50, 60):
            folder = write_index_folder(path, make_items(rows=rows, found=90), **options)
        alias = folder.index("image")._connection.alias
        mine = {
            n for n in pymilvus.utility.list_collections(using=alias) if options["collection"] in n
        }
        # The one before stays for its readers.
        assert {name.rpartition("_")[2] for name in mine} == {"2", "3"}
        again = read_index_folder(path)
        assert len(again.index("image")) == 60
        folder.index("instance").drop()
        with pytest.raises(RegionDHError, match="has no collection .*: build the index again"):
            read_index_folder(path)
        assert len(read_index_folder(path, engine="numpy").index("instance")) == 90


LOAD = """
import os, signal, sys
sys.path.insert(0, sys.argv[3])
from index_oracle import make_codes
from regiondh_d2.retrieval.engines import create_index, milvus_engine
milvus_engine._BATCH = int(sys.argv[5])
index = create_index(64, "milvus", uri=sys.argv[1], collection=sys.argv[2], patience=300.0)
insert, batches = type(index._remote).insert, 0
def insert_and_die(*args, **options):
    global batches
    batches += 1
    result = insert(*args, **options)
    if batches == int(sys.argv[6]):
        os.kill(os.getpid(), signal.SIGKILL)
    return result
type(index._remote).insert = insert_and_die
print("ready", flush=True)
index.add(make_codes(int(sys.argv[4]), 64))
print("loaded", flush=True)
"""


def start_loading(uri, name, count, batch, dies_after=0):
    """A process that adds codes, and kills itself after some batches if asked for."""
    words = [uri, name, os.path.dirname(__file__), count, batch, dies_after]
    command = [sys.executable, "-c", LOAD, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@needs_milvus
def test_a_kill_of_the_loading_process(tmp_path):
    """Another one goes on; every row is there once."""
    # A file of Milvus Lite is for one process at a time.
    uri, name, codes = (
        MILVUS or str(tmp_path / "a.db"),
        f"k{os.urandom(8).hex()}",
        make_codes(900, 64),
    )
    with start_loading(uri, name, 900, batch=200, dies_after=3) as loader:
        assert loader.stdout.read() == "ready\n"
    assert loader.returncode == -signal.SIGKILL
    index = create_index(64, "milvus", uri=uri, collection=name)
    assert index.search(codes[:2], 3)[1].shape == (2, 0)
    assert index._count("row >= 0") == 600
    index.add(codes)
    assert index._count("row >= 0") == 900
    assert_answers(index, codes[:2], 300, sort_pairs(codes[:2], codes, 64, 300))
    index.drop()


@needs_milvus
@pytest.mark.skipif("REGIONDH_TEST_MILVUS_SERVER" not in os.environ, reason="no server to kill")
def test_a_kill_of_the_server_in_mid_load(milvus_uri):
    """The server is killed and started again while a process loads; every row is there once."""
    name = f"k{os.urandom(8).hex()}"
    with start_loading(milvus_uri, name, 20_000, batch=200) as loader:
        assert loader.stdout.readline() == "ready\n"
        time.sleep(1.0)
        with open(os.environ["REGIONDH_TEST_MILVUS_SERVER"]) as file:
            os.killpg(int(file.read()), signal.SIGKILL)  # .ci/server_tests.py starts it again
        assert loader.stdout.readline() == "loaded\n"
    index = create_index(64, "milvus", uri=milvus_uri, collection=name, patience=300.0)
    codes = make_codes(20_000, 64)
    assert len(index) == 20_000
    assert index._count("row >= 0") == 20_000
    assert_answers(index, codes[:2], 300, sort_pairs(codes[:2], codes, 64, 300))
    index.drop()
