"""Files that hold work appear whole or not at all: written beside the target, flushed to the disk, then renamed."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

TEMPORARY = ".*.tmp*"  # matches the name of every unfinished file


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path; when the block ends without an exception, that file replaces `path` in one step.

    A reader, or a run that is killed at any moment, sees the old file or the new one, never a part. The temporary
    file is in the same folder (a rename does not cross file systems), keeps the suffix (some writers choose their
    format by it), and is removed when the block raises. The folder is made if it is missing. Of several writers of
    `path`, processes or threads, the last one wins.

    The new file has the permissions of the one that it replaces, or else those that a new file gets. A symbolic link
    is replaced itself, and what it points to stays as it was: perhaps that is another checkpoint, or a cache.

        with atomic_write("last.pth") as temporary:
            torch.save(state, temporary)

    Raises:
        OSError: the folder or the file cannot be written (the disk is full, no permission), or `path` is a folder or a
        device. It names `path`, which is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    permissions = _permissions(path)
    # The name is short, where the target's is as long as the file system allows, and no other writer's.
    temporary = path.with_name(f".{path.stem[:32]}.{uuid4().hex[:16]}.tmp{path.suffix}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        if permissions is not None and temporary.stat().st_nlink == 1:  # not of atomic_copy's source as well
            with suppress(OSError):  # a file system without permissions
                temporary.chmod(permissions)
        os.replace(temporary, path)
        temporary.unlink(missing_ok=True)  # a rename between two names of one file does nothing
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary), temporary):
            raise OSError(error.errno, f"{error.strerror}; not written, and as it was", str(path)) from error
        raise
    with suppress(OSError):  # some network file systems cannot sync a folder; the file itself is safe already
        _flush_to_disk(path.parent)


def atomic_copy(source: str | Path, target: str | Path) -> None:
    """Makes `target` a second name of the file `source`, or a copy where the file system has no hard links.

    Atomic as atomic_write. Only for files that are replaced and never changed in place, as checkpoints are.
    """
    with atomic_write(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def _permissions(path: Path) -> int | None:
    """Of the file that `path` is; None where there is none, and of a link, which has none of its own."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path} is a folder, and cannot be replaced by a file")
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is a device or a pipe, and cannot be replaced by a file")
    return None if path.is_symlink() else stat.S_IMODE(mode)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
