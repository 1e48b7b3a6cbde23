"""Results of contiguous rows gathered into whole cache lines, written past the caches.

Rows seldom begin at a line, and a line written in pieces past the caches costs several whole ones. So a tile's results go to a
small buffer first, laid against the lines as its target is; whole lines leave it, and what is left of the last line waits
for the next tile. Only the first and the last line of a block are written number by number.
"""

from fastswl.compilation import routine
from fastswl.simd import FLOAT32, itemsize, load, load_one, store, store_one, store_streaming

#: bytes of a line, and of a float32 vector, by which lines are moved whatever they hold
LINE_BYTES = 64


@routine
def flush(storage, buffer, target, n, first, last):
    """Write `n` numbers that lie at `buffer` + (target % 64) to `target`; the first and the last tile of a block are told."""
    size = itemsize(storage)
    before = target % LINE_BYTES
    line = target - before
    end = target + n * size
    source = buffer
    if first and before != 0:
        head = min(n, (LINE_BYTES - before) // size)
        for i in range(head):
            store_one(storage, target + size * i, load_one(storage, buffer + before + size * i))
        line += LINE_BYTES
        source += LINE_BYTES
    while line + LINE_BYTES <= end:
        store_streaming(FLOAT32, line, load(FLOAT32, source))
        line += LINE_BYTES
        source += LINE_BYTES
    if line < end:
        if last:
            # from the line's begin: what an earlier tile of the block left there waits, too
            place = line
            while place < end:
                store_one(storage, place, load_one(storage, source + (place - line)))
                place += size
        store(FLOAT32, buffer, load(FLOAT32, source))
