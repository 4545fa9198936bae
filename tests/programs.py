"""Programs of this package in forks of the test's process, which import nothing anew.

A new process imports PyTorch and Detectron2 first, which takes ten seconds. Tests of what only a
new process shows, such as the imports themselves, start one with :mod:`subprocess` instead.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace


def _run(words, cwd, output, error):
    os.setsid()
    # A shell starts background jobs, these tests perhaps, with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    for number, path in ((1, output), (2, error)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    sys.argv = [str(word) for word in words]
    if words[0] == "-m":
        sys.argv = ["", *sys.argv[2:]]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")


def start_program(words, *, cwd, output=os.devnull, error=os.devnull):
    """Start a program, the head of a process group.

    Args:
        words: a script, or "-m" and a module, and its arguments.
        cwd: its working directory.
        output, error: files that its outputs are appended to.

    Returns:
        A process of :mod:`multiprocessing`.
    """
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_run, args=(words, str(cwd), str(output), str(error)))
    process.start()
    return process


def run_program(words, *, cwd):
    """Run a program in a folder to its end.

    Returns:
        Its ``returncode``, and its outputs ``stdout`` and ``stderr``, as :func:`subprocess.run`
        gives them.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder, "out"), Path(folder, "err")
        process = start_program(words, cwd=cwd, output=paths[0], error=paths[1])
        process.join()
        out, err = (path.read_text(errors="surrogateescape") for path in paths)
    return SimpleNamespace(returncode=process.exitcode, stdout=out, stderr=err)
