"""Files from the network, kept in torch.hub's cache."""

import hashlib
from pathlib import Path
from urllib.parse import urlparse

import torch


def download(url: str, sha256: str | None = None) -> Path:
    """The file of a URL: from the cache (`torch.hub.get_dir()`/checkpoints), downloaded there if it is missing.

    Args:
        sha256: what the file's SHA-256 begins with, checked every time: after a download, and again for a file that was
            put into the cache by hand or damaged since. None: not checked.
    Raises:
        ConnectionError: the download failed; the message says where to put the file instead. ValueError: another hash.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if path.is_file():
        if sha256 and not _sha256(path).startswith(sha256):
            raise ValueError(f"{path} is not the file of {url}: its SHA-256 does not begin with {sha256}. Delete it")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)  # appears under its name when complete
    except OSError as error:  # urllib's errors are among them
        raise ConnectionError(
            f"Could not download {url} ({error}). If you can get the file elsewhere, put it at {path}, or give its path"
        ) from error
    except RuntimeError as error:  # the hash
        raise ValueError(f"The download of {url} was cut short or is not the published file: {error}") from error
    return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
