"""Files that hold work appear whole or not at all: written beside the target, flushed to the disk, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".*.tmp*"  # matches the name of every unfinished file


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path; when the block ends without an exception, that file replaces `path` in one step.

    A reader, or a run that is killed at any moment, sees the old file or the new one, never a part. The temporary
    file is in the same folder (a rename does not cross file systems), keeps the suffix (some writers choose their
    format by it), and is removed when the block raises. The folder is made if it is missing.

        with atomic_write("last.pth") as temporary:
            torch.save(state, temporary)

    Raises:
        OSError: the folder or the file cannot be written (the disk is full, no permission); `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    temporary.unlink(missing_ok=True)  # of a killed process that had this number
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
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


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
