"""The command that serves the page."""

import json
import socket

import pytest
from starlette.testclient import TestClient

from regiondh_cli.main import main
from regiondh_d2.commands import serve
from regiondh_d2.retrieval.index_folder import write_index_folder
from regiondh_d2.retrieval.service import SearchService
from regiondh_d2.web import server
from searching import index_scenes
from web_site import forked_decoder, make_items

BOX = "20,20,90,90"


@pytest.fixture
def served(monkeypatch):
    """The application that the command would serve, in place of a server that never ends."""
    found = {}

    def run_server(app, listening):
        found.update(app=app, address=listening.getsockname())
        listening.close()

    monkeypatch.setattr(server, "run_server", run_server)
    monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
    with forked_decoder(monkeypatch):  # its patch: processes are forks
        yield found


@pytest.fixture
def index(tmp_path):
    write_index_folder(tmp_path / "index", make_items(tmp_path / "photos"), engine="numpy")
    return str(tmp_path / "index")


def test_from_an_index_to_answers(random_network, tmp_path, load_tool, served, capsys):
    folder = index_scenes(random_network, tmp_path, load_tool)
    network = ["--config-file", random_network.config, *random_network.opts]
    words = ["serve", "--index", str(folder / "index"), "--port", "0", *network]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"page: http://127.0.0.1:{served['address'][1]}/\n" in out
    assert "token" not in out
    client = TestClient(served["app"], "http://127.0.0.1")
    health = client.get("/api/health").json()
    assert health["network"]
    scene = sorted((random_network.scenes / "JPEGImages").glob("database*"))[0]

    # A scene that is uploaded has the code that was stored for it.
    found = client.post("/api/query?limit=1", content=scene.read_bytes()).json()
    assert found["answers"][0]["distance"] == 0
    assert found["answers"][0]["file_name"] == f"JPEGImages/{scene.name}"
    upload = found["upload"]["upload"]
    assert len(found["upload"]["objects"]) > 0

    # So have its objects, and a box gives what `regiondh search` gives.
    stored = client.get("/api/search", params={"upload": upload, "object": 1, "limit": 1}).json()
    assert stored["answers"][0]["distance"] == 0
    boxed = client.get("/api/search", params={"upload": upload, "box": BOX, "limit": 10}).json()
    out_file = tmp_path / "out.json"
    words = ["--query", str(scene), "--box", BOX, "--fold-duplicates"]
    more = ["--json", str(out_file), *random_network.opts]
    config = ["--config-file", random_network.config, "--index", str(folder / "index")]
    assert main(["search", *config, *words, *more]) == 0
    expected = json.loads(out_file.read_text())
    assert [x["distance"] for x in boxed["answers"]] == [x["distance"] for x in expected["answers"]]
    assert set(expected) - {"format", "version"} <= set(boxed)
    assert set(expected["answers"][0]) <= set(boxed["answers"][0])


def test_an_index_of_an_unknown_network_is_served_without_it(index, served, capsys):
    assert main(["serve", "--index", index, "--port", "0"]) == 0
    assert "name it with --config-file" in capsys.readouterr().out
    client = TestClient(served["app"], "http://127.0.0.1")
    assert not client.get("/api/health").json()["network"]
    photo = client.get("/api/photos?limit=1").json()["photos"][0]["photo"]
    assert client.get(f"/api/search?photo={photo}").status_code == 200
    refused = client.get(f"/api/search?photo={photo}&box=1,2,3,4")
    assert refused.status_code == 422


def test_another_host_needs_a_token(index, served, capsys, monkeypatch):
    assert main(["serve", "--index", index, "--port", "0", "--host", "0.0.0.0"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("token"))
    token = line.rpartition(" ")[2]
    assert len(token) >= 32
    client = TestClient(served["app"], "http://192.168.0.9")
    assert client.get("/api/health").status_code == 401
    bearer = {"authorization": f"Bearer {token}"}
    assert client.get("/api/health", headers=bearer).status_code == 200

    monkeypatch.setenv(serve.TOKEN_VARIABLE, "of-the-environment")
    assert main(["serve", "--index", index, "--port", "0", "--allow-host", "a.example"]) == 0
    assert "of-the-environment" not in capsys.readouterr().out
    client = TestClient(served["app"], "http://a.example")
    bearer = {"authorization": "Bearer of-the-environment"}
    assert client.get("/api/health", headers=bearer).status_code == 200
    monkeypatch.setenv(serve.TOKEN_VARIABLE, "short")
    assert main(["serve", "--index", index, "--port", "0"]) == 1
    assert "REGIONDH_TOKEN" in capsys.readouterr().err


def test_wrong_arguments_are_told_in_one_line(index, served, capsys, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--index", index, "--port", port]) == 1
        assert f"--port {port}" in capsys.readouterr().err
    assert main(["serve", "--index", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["serve", "--index", index, "--host", "nowhere.invalid"]) == 1
    assert "--host nowhere.invalid" in capsys.readouterr().err


def test_the_network_is_that_of_the_index(tmp_path):
    from regiondh_d2.checkpoint.zoo import CONFIGS, FINGERPRINTS

    items = make_items(tmp_path / "photos")
    items.model_fingerprint = next(iter(FINGERPRINTS))
    write_index_folder(tmp_path / "index", items, engine="numpy")
    args = type("Args", (), {"config_file": None})
    service = SearchService.open(tmp_path / "index")
    assert serve.config_of(args, service) == CONFIGS[FINGERPRINTS[items.model_fingerprint]]
    args.config_file = "other"
    assert serve.config_of(args, service) == "other"
