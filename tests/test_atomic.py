"""Files that appear whole or not at all: links, permissions, long names, full disks, writers at the same time."""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastrcnn import atomic
from fastrcnn.atomic import TEMPORARY, atomic_copy, atomic_write


def write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def test_a_link_is_replaced_and_its_target_is_left_alone(tmp_path: Path) -> None:
    """best.pth may be somebody's link to epoch_7.pth, or to a file in a cache."""
    for name, target in (("to a file", tmp_path / "target"), ("to nothing", tmp_path / "nothing")):
        (tmp_path / "target").write_text("old")
        (tmp_path / name).symlink_to(target)
        write(tmp_path / name, "new")
        assert not (tmp_path / name).is_symlink() and (tmp_path / name).read_text() == "new"
        assert (tmp_path / "target").read_text() == "old" and not (tmp_path / "nothing").exists()


def test_a_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "large disk")
    write(tmp_path / "runs" / "last.pth", "new")
    assert (tmp_path / "large disk" / "last.pth").read_text() == "new" and (tmp_path / "runs").is_symlink()


@pytest.fixture
def umask() -> Iterator[None]:
    """That the test may change."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_permissions(tmp_path: Path, umask: None) -> None:
    """Of the file before; of a new one, those that every new file has."""

    def mode(name: str) -> int:
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    write(tmp_path / "new", "")
    assert mode("new") == 0o640
    (tmp_path / "new").chmod(0o600)
    os.umask(0)
    write(tmp_path / "new", "")
    assert mode("new") == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "new")
    write(tmp_path / "link", "")
    assert mode("link") == 0o666  # a link has no permissions to speak of
    atomic_copy(tmp_path / "link", tmp_path / "new")  # the same file: it keeps what it has
    assert mode("link") == mode("new") == 0o666


def test_names_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    for name in ("a" * 251 + ".pth", "é" * 125 + ".json"):
        write(tmp_path / name, "whole")
        assert (tmp_path / name).read_text() == "whole"
    with pytest.raises(OSError, match="aaaa"):
        write(tmp_path / ("a" * 300), "")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a pipe"])
def test_what_is_no_file_is_not_replaced(kind: str, tmp_path: Path) -> None:
    """`--out /dev/null` by root must not remove the device."""
    path = tmp_path / "target"
    if kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
        path = path if "link" in kind else tmp_path / "pipe"
    before = path.lstat()
    with pytest.raises(OSError, match=rf"{path.name} is a (folder|device or a pipe)"), atomic_write(path):
        pytest.fail("nothing is to be written")
    assert path.lstat() == before and not list(tmp_path.glob(TEMPORARY))


# --- a full disk ------------------------------------------------------------------------------------------------------


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_for_two_names(source: object, target: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", source, None, target)


@contextmanager
def as_it_was(path: Path, message: str) -> Iterator[None]:
    """Inside, a write to `path` fails and says so of it; the old file is there, and nothing else."""
    path.write_text("old")
    with pytest.raises(OSError, match=message) as caught:
        yield
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


MESSAGE = r"No space left on device; not written, and as it was: .*metrics\.json"


def test_a_disk_that_is_full_while_writing(tmp_path: Path) -> None:
    with as_it_was(tmp_path / "metrics.json", MESSAGE), atomic_write(tmp_path / "metrics.json") as temporary:
        temporary.write_text("ne")
        full()  # a file's write() does not name it


@pytest.mark.parametrize(("call", "failure"), [("fsync", full), ("replace", full_for_two_names)])
def test_a_disk_that_is_full_at_the_end(
    call: str, failure: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic.os, call, failure)
    with as_it_was(tmp_path / "metrics.json", MESSAGE):
        write(tmp_path / "metrics.json", "new")


def test_errors_of_other_files_keep_their_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such picture"), atomic_write(tmp_path / "page.html"):
        (tmp_path / "no such picture").read_text()
    with pytest.raises(OSError, match="in words"), atomic_write(tmp_path / "page.html"):
        raise OSError("in words")
    assert not list(tmp_path.iterdir())


# --- several writers --------------------------------------------------------------------------------------------------


def test_two_writers_at_the_same_time(tmp_path: Path) -> None:
    """Each writes a file of its own, and each result is whole: the one that ends last stays."""
    path = tmp_path / "config.yaml"
    with atomic_write(path) as first:
        first.write_text("first")
        write(path, "second")
        assert path.read_text() == "second" and first.read_text() == "first"
    assert path.read_text() == "first"


def test_threads_never_meet_in_one_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    names: set[str] = set()
    texts: list[str] = []
    barrier = threading.Barrier(8)

    def write_much(letter: str) -> None:
        for _ in range(20):
            with atomic_write(path) as temporary:
                names.add(temporary.name)
                barrier.wait(60)  # all have their names before one writes
                temporary.write_text(letter * 10000)
            texts.append(path.read_text())

    threads = [threading.Thread(target=write_much, args=(letter,)) for letter in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == len(texts) == 160 and all(text == text[0] * 10000 for text in texts)
    assert list(tmp_path.iterdir()) == [path]
