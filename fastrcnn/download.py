"""Files from the network, kept in torch.hub's cache.

While a file is on its way it is <name>.part beside its place. An interrupted download leaves that part, and the next
asks for the rest. Processes that want the same file take turns: one downloads it, the others find it.
"""

import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.parse import unquote, urlparse
from urllib.request import Request, urlopen

import torch
from tqdm import tqdm

ATTEMPTS = 5  # connections for one file; another is made only if the last one brought something
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 20  # bytes
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def download(url: str, sha256: str | None = None) -> Path:
    """The file of a URL: from the cache (`torch.hub.get_dir()`/checkpoints), downloaded there if it is missing.

    Args:
        sha256: what the file's SHA-256 begins with, checked every time: after a download, and again for a file that was
            put into the cache by hand or damaged since. None: the digits that the file's name ends with, as in
            resnet50-0676ba61.pth; a name without them is not checked, and its download is not resumed.
    Raises:
        ConnectionError: the download failed; the message says where to put the file instead. ValueError: another hash.
        OSError: the cache cannot be written.
    """
    path = cached_path(url)
    sha256 = sha256 or _digest_in_name(path.name)
    if path.is_file():
        if not _has_digest(path, sha256):
            raise ValueError(f"{path} is not the file of {url}: its SHA-256 does not begin with {sha256}. Delete it")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _own_part(path) as part:
        if path.is_file():  # another process has downloaded it meanwhile
            os.unlink(part.name)
        else:
            _complete(part, url, sha256, path)
            os.fsync(part.fileno())
            os.replace(part.name, path)
    return path


def cached_path(url: str) -> Path:
    """Where the cache keeps, or would keep, the file of a URL."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(unquote(urlparse(url).path)).name


@contextmanager
def _own_part(path: Path) -> Iterator[BinaryIO]:
    """path's .part, open for appending, for this process alone: a lock that even a killed process gives back."""
    name = f"{path}.part"
    while True:
        with open(name, "a+b") as part:
            with suppress(OSError):  # some network file systems have no locks: then nobody else is kept out
                fcntl.flock(part, fcntl.LOCK_EX)
            if _has_name(part, name):  # else whoever had it before has renamed or deleted it
                yield part
                return


def _has_name(file: BinaryIO, name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(name))
    except FileNotFoundError:
        return False


def _complete(part: BinaryIO, url: str, sha256: str | None, path: Path) -> None:
    """Fills the part up to the end of the file, and checks the hash; a part that has another is deleted."""
    resumed = _size(part) > 0
    _receive_all(part, url, sha256, path)
    if resumed and not _has_digest(part.name, sha256):  # what was here may be of another version of the file
        part.truncate(0)
        _receive_all(part, url, sha256, path)
    if not _has_digest(part.name, sha256):
        os.unlink(part.name)
        raise ValueError(
            f"The download of {url} is not the published file: expected a SHA-256 that begins with {sha256}, "
            f"got {_digest(part)[:16]}... of {_size(part)} bytes"
        )


def _receive_all(part: BinaryIO, url: str, sha256: str | None, path: Path) -> None:
    """Connects until the file is here, as long as every connection brings more of it."""
    for attempt in range(1, ATTEMPTS + 1):
        if not sha256:  # nothing would tell if the rest were of another version
            part.truncate(0)
        before = _size(part)
        try:
            return _receive(part, url)
        except (OSError, HTTPException) as error:  # urllib's errors are OSErrors, too
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise OSError(error.errno, f"{os.strerror(error.errno)}, downloading {url}", str(path)) from error
            have = _size(part)
            if have <= before or attempt == ATTEMPTS:
                kept = f" The next call continues after the {have} bytes that are here." if have and sha256 else ""
                raise ConnectionError(
                    f"Could not download {url} ({error}).{kept} If you can get the file elsewhere, put it at {path}, "
                    "or give its path"
                ) from error


def _receive(part: BinaryIO, url: str) -> None:
    """Appends the rest of the file in one connection. Raises OSError or HTTPException if that ends before the file."""
    start = _size(part)
    headers = {"User-Agent": "fastrcnn", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if start and error.code == 416:  # there is nothing beyond what is here: it may be complete, the hash tells
            return
        raise
    with response:
        if start and not _continues(response, start):  # a server without ranges sends all of it
            part.truncate(0)
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdecimal() else None
        name = Path(part.name).stem
        with tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True, disable=None) as bar:
            while block := response.read(BLOCK):
                part.write(block)
                bar.update(len(block))
    if total is not None and _size(part) != total:
        raise ConnectionError(f"the connection ended after {_size(part)} of {total} bytes")


def _continues(response, start: int) -> bool:
    sent = response.headers.get("Content-Range") or ""
    return response.status == 206 and sent.startswith(f"bytes {start}-")


def _size(part: BinaryIO) -> int:
    return part.seek(0, os.SEEK_END)  # flushes what was written


def _digest_in_name(name: str) -> str | None:
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return match[1] if match else None


def _has_digest(path: str | Path, sha256: str | None) -> bool:
    if not sha256:
        return True
    with open(path, "rb") as file:
        return _digest(file).startswith(sha256.lower())


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()
