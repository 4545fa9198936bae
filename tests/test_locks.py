"""Locks, and files that other programs use."""

import errno
import multiprocessing
import threading

import filelock
import pytest

from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.utils.locks import FileInUseError, hold_lock, is_busy, refuse_if_busy

FORK = multiprocessing.get_context("fork")  # which imports nothing anew


def hold(path, connection):
    with hold_lock(path, "what"):
        connection.send("held")
        connection.recv()


def test_a_lock_keeps_others_out_until_its_holder_ends(tmp_path):
    path = tmp_path / ".lock"
    here, there = FORK.Pipe()
    child = FORK.Process(target=hold, args=(path, there))
    child.start()
    try:
        assert here.recv() == "held"
        with (
            pytest.raises(FileInUseError, match=r"^a\\nb: in use by another program"),
            hold_lock(path, "a\nb"),
        ):
            pass
    finally:
        child.kill()
        child.join()
    with hold_lock(path, "what"):
        pass


def test_a_lock_keeps_other_threads_out(tmp_path):
    found = []

    def work():
        try:
            with hold_lock(tmp_path / ".lock", "what"):
                found.append("held")
        except FileInUseError:
            found.append("refused")

    with hold_lock(tmp_path / ".lock", "what"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    work()
    assert found == ["refused", "held"]


def test_a_lock_that_is_opened_in_time_is_waited_for(tmp_path):
    path = tmp_path / ".lock"
    held, release = threading.Event(), threading.Event()

    def work():
        with hold_lock(path, "what"):
            held.set()
            release.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    held.wait(60)
    with pytest.raises(FileInUseError), hold_lock(path, "what", wait=0.1):
        pass
    threading.Timer(0.2, release.set).start()
    with hold_lock(path, "what", wait=60):
        assert release.is_set()
    thread.join()


def test_errors_of_files_in_use():
    for number in (errno.EAGAIN, errno.EBUSY, errno.ETXTBSY):
        with pytest.raises(RegionDHError, match=r"^a\.h5: in use by another program"):
            refuse_if_busy("a.h5", OSError(number, "text"))
    windows = OSError(errno.EACCES, "text")
    windows.winerror = 32
    assert is_busy(windows)
    for error in (FileNotFoundError(2, "x"), PermissionError(13, "x"), OSError("x"), ValueError()):
        assert not is_busy(error)
        refuse_if_busy("a.h5", error)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def acquire(*args, **options):
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with hold_lock(tmp_path / ".lock", "what"):
        pass
    assert "what: its file system has no locks" in caplog.text
