"""The fingerprint of the native sources: setup.py compiles it in, and a checkout compares it with csrc/ on import."""

import hashlib
from pathlib import Path

SUFFIXES = (".h", ".cuh", ".inl", ".cpp", ".cu")  # not what editors leave beside them


def source_hash(csrc: Path) -> str:
    """A short hash over the names and contents of the sources in the folder csrc."""
    digest = hashlib.sha256()
    for path in sorted(path for path in csrc.rglob("*") if path.suffix in SUFFIXES):
        digest.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
