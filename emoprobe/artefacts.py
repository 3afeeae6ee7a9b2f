"""Tensors with their record in one `.safetensors` file: written whole or not at all, never pickled."""

import glob
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from emoprobe.checks import is_a
from emoprobe.errors import InputError
from emoprobe.records import KEY, UNREADABLE, damaged, read_record

try:
    import fcntl
except ImportError:  # Windows: what a killed process has left there stays
    fcntl = None  # type: ignore[assignment]

PACKAGES = ("emoprobe", "torch", "transformers", "scikit-learn", "numpy")
"""What numbers may depend on."""
PART = f"{'[a-z0-9_]' * 8}.part"
"""How the name of a temporary file ends, behind a dot, the name of the file that it is to be, and another dot."""


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the installed version of each package, for the record; of torch with the build, which says for what hardware."""
    found = {}
    for package in packages:
        if package == "torch":
            found[package] = str(torch.__version__)
            continue
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout that is not installed
            found[package] = "not installed"
    return found


def digest(parts: Mapping[str, Any]) -> str:
    """Return a short hash of what is named: of tensors their shape and numbers, of all else how it shows itself."""
    whole = hashlib.sha256()
    for name, part in sorted(parts.items()):
        if isinstance(part, Tensor):
            whole.update(f"{name} {tuple(part.shape)} ".encode())
            whole.update(part.detach().cpu().double().numpy().tobytes())
        else:
            whole.update(f"{name} {part!r} ".encode())
    return whole.hexdigest()[:16]


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file under its final name only once all of it is on disk.

    What a process that was killed in the midst of writing this file has left beside it is removed. Raises `InputError` where
    the file cannot be written, as on a full disk; what was under that name is still there.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(path)
        with _temporary(path) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # some disks say only now that they are full
            if fcntl is None:
                file.close()  # Windows renames no open file
            os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(
                f'cannot write to "{path}" ({error.strerror}): make room there, or give another place; what was written before '
                "is kept"
            ) from error
        raise
    return path


# Temporary files are locked by whoever writes them. The system lets go of a lock when its process ends, however it ends, so
# that a temporary file without a lock is one that was left, on whatever host and whoever has its process number now.


def _temporary(path: Path) -> IO[bytes]:
    """Open and lock a new file beside `path`, under a name that `_remove_left_over` knows."""
    while True:
        file = (path.parent / f".{path.name}.{secrets.token_hex(4)}.part").open("xb")
        if fcntl is None:
            return file
        with suppress(OSError):  # a file system without locks: nothing can be known to be left there
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another process took it for one that was left, before it was locked


def holds_nothing(folder: Path) -> bool:
    """Say whether a folder is empty, but for what processes that were killed in writing their first file have left."""
    return all(fnmatchcase(file.name, f".*.{PART}") for file in folder.iterdir())


def _remove_left_over(path: Path) -> None:
    """Remove the temporary files of `path` whose processes are no more."""
    if fcntl is None:
        return
    for left in path.parent.glob(f".{glob.escape(path.name)}.{PART}"):
        if left.is_file() and not left.is_symlink():  # a pipe would be waited for
            with suppress(OSError), left.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()


@contextmanager
def only_writer(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let nobody else write to a folder, or a file, that is filled part by part inside the block.

    A file beside it, .NAME.lock, is there and locked meanwhile. Raises `InputError` where another process, or another block of
    this one, is writing there already; where files cannot be locked, nobody is kept out.
    """
    lock, owner = _lock(Path(path)), os.getpid()
    try:
        yield
    finally:
        if lock is not None and os.getpid() == owner:  # not in a process that was forked inside the block
            with suppress(OSError):  # in a place of somebody else's
                Path(lock.name).unlink(missing_ok=True)
            lock.close()


def _lock(path: Path) -> IO[bytes] | None:
    """Return the locked file that says that `path` is being written to, or None where there can be no such file."""
    place = path.resolve()
    while fcntl is not None:
        with ExitStack() as unless_returned:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                lock = unless_returned.enter_context(_opened(place.parent / f".{place.name}.lock"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f'another process is writing to "{path}": wait until it has ended, or give another place'
                ) from None
            except OSError:  # no locks here, or nothing can be written at all, as whoever writes will be told
                return None
            if os.fstat(lock.fileno()).st_nlink:
                unless_returned.pop_all()
                return lock
            # Whoever had it has removed it before it was locked here.
    return None


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("a+b")
    except PermissionError:
        return path.open("rb")  # another user's, which can be locked all the same


def write_artefact(
    path: str | Path, kind: str, version: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> Path:
    """Write tensors and a JSON record of what they are and of package versions; equal content gives equal bytes."""
    described = {"kind": kind, "version": version, "versions": versions(), **record}
    metadata = {KEY: json.dumps(described, sort_keys=True, allow_nan=False)}
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_bytes(path, save(content, metadata))


def read_artefact(
    path: str | Path, kind: str, version: int, names: Sequence[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, or those of these names only, and the record of an artefact of this kind.

    Raises `InputError` for a file that is missing, damaged, of another kind or written by a later version.
    """
    record = read_record(path, kind)
    if not is_a(record.get("version"), int) or not 1 <= record["version"] <= version:
        raise InputError(
            f'"{path}" has format {record.get("version")}: this emoprobe reads up to {version}; upgrade it'
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
    except UNREADABLE as error:
        raise damaged(path, kind, error) from error
    return tensors, record
