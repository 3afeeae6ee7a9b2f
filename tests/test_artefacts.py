"""What killed processes leave beside their files goes with the next writing of the same file, and nothing else does.

And of two that would write to one folder or log, the second is told.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from emoprobe import artefacts
from emoprobe.artefacts import only_writer, write_bytes
from emoprobe.errors import InputError

pytestmark = pytest.mark.skipif(artefacts.fcntl is None, reason="files are locked on POSIX only")
WRITING = """
import os, signal, sys
from emoprobe.artefacts import write_bytes

rename = os.replace

def replace(*given):
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))  # all is written, but for its name
    rename(*given)

os.replace = replace
write_bytes(sys.argv[1], b"theirs")
"""
HOLDING = """
import sys, time
from emoprobe.artefacts import only_writer

with only_writer(sys.argv[1]):
    print("now", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@contextmanager
def writer(path: Path, sent: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that sends itself a signal when it has written all of a file but its name."""
    with subprocess.Popen([sys.executable, "-c", WRITING, str(path), sent]) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_a_killed_process_has_left_goes_with_the_next_writing(tmp_path: Path) -> None:
    path = tmp_path / "[a] (1)*.json"
    for killed in range(2):
        with writer(path, "SIGKILL") as process:
            assert process.wait(timeout=60) == -signal.SIGKILL
        (left,) = names(tmp_path)
        assert left.startswith(f".{path.name}.") and left.endswith(".part"), killed
    write_bytes(tmp_path / "other.json", b"")
    assert left in names(tmp_path), "of another file"
    write_bytes(path, b"ours")
    assert names(tmp_path) == [path.name, "other.json"] and path.read_bytes() == b"ours"


def test_what_a_living_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with writer(path, "SIGSTOP") as process:
        os.waitpid(process.pid, os.WUNTRACED)
        write_bytes(path, b"ours")
        assert len(names(tmp_path)) == 2 and path.read_bytes() == b"ours"
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=60) == 0
    assert names(tmp_path) == [path.name] and path.read_bytes() == b"theirs"


def test_files_of_the_users_own_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    mine = [".file.json.part", ".file.json.abcdefgh", ".file.json.ABCDEFGH.part", ".file.json.abcdefghi.part"]
    mine += ["file.json.abcdefgh.part", ".other.json.abcdefgh.part"]
    for name in mine:
        (tmp_path / name).touch()
    (tmp_path / ".file.json.linked00.part").symlink_to(tmp_path / mine[0])
    (tmp_path / ".file.json.folder00.part").mkdir()
    os.mkfifo(tmp_path / ".file.json.pipe0000.part")
    before = names(tmp_path)
    write_bytes(path, b"")
    assert names(tmp_path) == sorted([*before, path.name])


def test_a_temporary_file_that_is_removed_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock: Callable[..., None] = artefacts.fcntl.flock
    calls = []

    def late(file: object, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:  # between making and locking it, another process comes by
            monkeypatch.setattr(artefacts.fcntl, "flock", flock)
            artefacts._remove_left_over(tmp_path / "file.json")
        flock(file, operation)

    monkeypatch.setattr(artefacts.fcntl, "flock", late)
    write_bytes(tmp_path / "file.json", b"ours")
    assert calls == [artefacts.fcntl.LOCK_EX]
    assert names(tmp_path) == ["file.json"] and (tmp_path / "file.json").read_bytes() == b"ours"


def test_without_locks_files_are_written_and_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".file.json.abcdefgh.part").touch()

    def none(file: object, operation: int) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(artefacts.fcntl, "flock", none)
    write_bytes(tmp_path / "file.json", b"ours")
    monkeypatch.setattr(artefacts, "fcntl", None)
    write_bytes(tmp_path / "file.json", b"ours")
    assert names(tmp_path) == [".file.json.abcdefgh.part", "file.json"]


@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_files_are_for_whom_the_user_lets_read_them(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        path = write_bytes(tmp_path / "file.json", b"ours")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_what_is_said_to_be_written_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, synced = os.fsync, []

    def spied(file: int) -> None:
        sync(file)
        synced.append((os.fstat(file).st_size, names(tmp_path)[-1]))

    monkeypatch.setattr(os, "fsync", spied)
    write_bytes(tmp_path / "file.json", b"ours")
    ((size, name),) = synced
    assert size == 4 and name.endswith(".part"), "all of it, before it has its name"


def test_threads_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    contents = [bytes([number]) * 100_000 for number in range(4)]

    def write(content: bytes) -> None:
        for _ in range(25):
            write_bytes(tmp_path / "file", content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not (tmp_path / "file").exists() or (tmp_path / "file").read_bytes() in contents
    assert names(tmp_path) == ["file"]


# Who may write -------------------------------------------------------------------------------------------------------


def test_while_another_process_writes_to_a_place_nobody_else_may(tmp_path: Path) -> None:
    kept = tmp_path / "new" / "kept"
    command = [sys.executable, "-c", HOLDING, str(kept)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"now\n"
            (tmp_path / "link").symlink_to(kept)
            for same in (kept, kept / "part" / "..", tmp_path / "link"):
                with pytest.raises(InputError, match=rf'^another process is writing to "{same}": wait'):
                    only_writer(same).__enter__()
            with only_writer(kept.parent / "other"):
                assert names(kept.parent) == [".kept.lock", ".other.lock"]
        finally:
            process.kill()
    assert names(kept.parent) == [".kept.lock"], "as a process leaves it that is killed"
    with only_writer(kept):
        pass
    assert names(kept.parent) == []


def test_the_place_is_free_again_whatever_happens_inside(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), only_writer(tmp_path / "kept"):
            with pytest.raises(InputError), only_writer(tmp_path / "kept"):
                raise AssertionError("two were let in")
            assert names(tmp_path) == [".kept.lock"]
            raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_lock_that_its_owner_removes_before_it_is_locked_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock: Callable[..., None] = artefacts.fcntl.flock
    lock, removed = tmp_path / ".kept.lock", []

    def late(file: object, operation: int) -> None:
        if not removed:  # between opening and locking it
            removed.append(lock.stat().st_ino)
            lock.unlink()
        flock(file, operation)

    monkeypatch.setattr(artefacts.fcntl, "flock", late)
    with only_writer(tmp_path / "kept"):
        assert removed and lock.is_file(), "a lock that no other process could find"
        with pytest.raises(InputError):
            only_writer(tmp_path / "kept").__enter__()
    assert names(tmp_path) == []


def test_without_locks_nobody_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: object, operation: int) -> None:
        raise OSError("no locks here")

    os.mkfifo(tmp_path / ".pipe.lock")
    with only_writer(tmp_path / "pipe"):
        pass
    monkeypatch.setattr(artefacts.fcntl, "flock", none)
    with only_writer(tmp_path / "kept"), only_writer(tmp_path / "kept"):
        pass
    monkeypatch.setattr(artefacts, "fcntl", None)
    with only_writer(tmp_path / "kept"), only_writer(tmp_path / "kept"):
        pass


def test_a_lock_outlives_a_fork_that_leaves_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / ".kept.lock"
    with only_writer(tmp_path / "kept"), monkeypatch.context() as forked:
        inner = only_writer(tmp_path / "other")
        inner.__enter__()
        forked.setattr(os, "getpid", lambda: -1)  # as in a child
        inner.__exit__(None, None, None)
        assert lock.is_file() and (tmp_path / ".other.lock").is_file()
    assert not lock.exists()


def test_a_lock_of_another_user_holds_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def of_another(self: Path, mode: str = "r", *given: Any, **named: Any) -> Any:
        if self.name == ".kept.lock" and mode != "rb":
            raise PermissionError
        return opened(self, mode, *given, **named)

    with only_writer(tmp_path / "kept"):
        monkeypatch.setattr(Path, "open", of_another)
        with pytest.raises(InputError, match="another process is writing"):
            only_writer(tmp_path / "kept").__enter__()
