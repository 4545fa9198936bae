"""Run the tests that need a server: Milvus Lite, Milvus, Ray, and PostgreSQL with pgvector; and
training on two machines.

Each has a virtual environment of its own, since some need old packages, and finds the others of
.venv behind these. The servers of Milvus and Ray listen on all interfaces, so they run in a network
namespace without any. Where a server can't be installed or started, its tests are skipped, and the
reason is printed.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RAY_TESTS = ["tests/test_ray_workers.py"]
POSTGRES_TESTS = ["tests/test_exchange.py::test_postgresql_gives_the_answers_of_the_engines"]
MILVUS_TESTS = [
    "tests/test_hamming_index.py::test_before_and_after_remove_reload_save_and_load",
    "tests/test_hamming_index.py::test_an_empty_index_and_no_queries",
    "tests/test_hamming_index.py::test_k_above_the_size_gives_all",
    "tests/test_hamming_index.py::test_rows_are_never_given_again",
    "tests/test_search_classes.py",
    "tests/test_milvus_engine.py",  # its last test kills the server
]
PORT = 19530
INSIDE = "--in-namespace"
# Without what takes minutes: to install Ray, unless it is there, and to wait until a server that
# was killed gives its data again.
QUICK = "--quick"


class CannotRun(Exception):
    """Why the tests of a server are skipped on this machine."""


def make_environment(kind: str) -> Path:
    """The Python of an environment, "milvus-lite", "milvus-server", "ray" or "postgres"."""
    constraints = ROOT / f"constraints-{kind}.txt"
    folder = ROOT / f".venv-{kind}"
    python, stamp = folder / "bin" / "python", folder / "constraints.txt"
    if not stamp.exists() or stamp.read_bytes() != constraints.read_bytes():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([ROOT / ".venv/bin/python", "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "-r", constraints]
        if subprocess.run(install).returncode:
            raise CannotRun(f"pip can't install {constraints.name}")
        (library,) = ROOT.glob(".venv/lib/python3*/site-packages")
        (own,) = folder.glob("lib/python3*/site-packages")
        (own / "zz_regiondh.pth").write_text(f"{library}\n")
        shutil.copyfile(constraints, stamp)
    return python


def run_tests(python: Path, tests: list[str], **environment: str) -> int:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **environment}
    command = [
        python,
        "-m",
        "pytest",
        "-q",
        "-k",
        "milvus or Milvus or Folder or postgresql or ray or machines",
        *tests,
    ]
    return subprocess.run([*command, "-p", "no:cacheprovider"], cwd=ROOT, env=env).returncode


def bring_up_loopback() -> None:
    """As ``ip link set lo up``, without that program."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40))


@contextlib.contextmanager
def running_server(folder: Path, program: Path):
    """A server on the loopback interface, started again when it is killed.

    Yields the file with the number of its process group.
    """
    state, stop = folder / "process", threading.Event()
    with open(folder / "log", "wb") as log:

        def keep() -> None:
            while not stop.is_set():
                # It takes another port while connections to a killed one end, for a minute.
                while not is_free(PORT) and not stop.wait(1.0):
                    pass
                if stop.is_set():
                    return
                server = subprocess.Popen(
                    [program, "--data", folder / "data", "--proxy-port", str(PORT)],
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                state.write_text(str(server.pid))
                server.wait()
                time.sleep(1)

        keeper = threading.Thread(target=keep)
        keeper.start()
        try:
            wait_for_port(folder / "log")
            yield state
        finally:
            stop.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(state.read_text()), signal.SIGKILL)
            keeper.join()


def is_free(port: int) -> bool:
    """Whether no socket has a port, not even one of a connection that has ended just now."""
    with socket.socket() as any_socket:
        try:
            any_socket.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def wait_for_port(log: Path, seconds: float = 300.0) -> None:
    end, wait = time.monotonic() + seconds, 0.5
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", PORT), 1):
            return
        time.sleep(wait)
        wait = min(5.0, 1.5 * wait)
    raise CannotRun(f"it did not start:\n{log.read_text(errors='replace')[-2000:]}")


def test_server(may_kill: bool) -> int:
    bring_up_loopback()
    python = make_environment("milvus-server")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with running_server(folder, python.parent / "milvus-server") as state:
            environment = {"REGIONDH_TEST_MILVUS": f"http://127.0.0.1:{PORT}"}
            if may_kill:
                environment["REGIONDH_TEST_MILVUS_SERVER"] = str(state)
            return run_tests(python, MILVUS_TESTS, **environment)


def test_ray() -> int:
    bring_up_loopback()
    return run_tests(make_environment("ray"), RAY_TESTS)


def test_machines() -> int:
    python = ROOT / ".venv/bin/python"
    return run_tests(python, ["tests/test_two_machines.py"], REGIONDH_TEST_NAMESPACES="1")


def in_namespace(kind: str, *options: str, may_install: bool = True) -> int:
    """Run this program's part for an environment, without a network."""
    if not may_install and not (ROOT / f".venv-{kind}").is_dir():
        raise CannotRun("it is not installed; make test-milvus installs it")
    make_environment(kind)  # from now on it is there: in the namespace there is no network
    unshare = shutil.which("unshare")
    if unshare is None:
        raise CannotRun("it needs a network namespace, and unshare is missing")
    if subprocess.run([unshare, "-n", "true"], capture_output=True).returncode:
        raise CannotRun("it needs a network namespace, and this user may not unshare -n")
    inside = [sys.executable, __file__, INSIDE, kind, *options]
    return subprocess.run([unshare, "-n", *inside]).returncode


def main() -> int:
    options = [QUICK] if QUICK in sys.argv else []
    parts = {
        "PostgreSQL": lambda: run_tests(make_environment("postgres"), POSTGRES_TESTS),
        "Milvus Lite": lambda: run_tests(make_environment("milvus-lite"), MILVUS_TESTS),
        "Ray": lambda: in_namespace("ray", may_install=not options),
        "two machines": test_machines,
        "Milvus server": lambda: in_namespace("milvus-server", *options),
    }
    if sys.argv[1:2] == [INSIDE]:
        kind = sys.argv[2]
        inside = {"ray": test_ray, "milvus-server": lambda: test_server(may_kill=not options)}
        parts = {f"{kind}, without a network": inside[kind]}
    failed = 0
    for name, run in parts.items():
        print(name, flush=True)
        try:
            failed = run() or failed
        except CannotRun as reason:
            print(f"{name}: skipped: {reason}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
