"""Results of contiguous rows gathered into whole cache lines, written past the caches.

Rows seldom begin at a line, and a line written in pieces past the caches costs several whole ones. So a tile's results go to a
small buffer first, laid against the lines as its target is; whole lines leave it, and what is left of the last line waits
for the next tile. Only the first and the last line of a block are written number by number.
"""

from fastswl.simd import (
    FLOAT32,
    formula,
    greatest,
    itemsize,
    least,
    load,
    load_one,
    log2_of,
    select,
    steps,
    store,
    store_one,
    store_streaming,
    when,
)

#: bytes of a line, and of a float32 vector, by which lines are moved whatever they hold
LINE_BYTES = 64
#: vectors of results that are written between exponentials, of which four go side by side: a store queue of today holds 48 to 72 (24:
#: 1 to 4 % slower in cache, 64: 3 to 5 %, 16: 5 % beyond the caches)
INTERLEAVED = 32


@formula
def write_numbers(storage, target, source, n):
    """Some numbers, one by one."""
    for i in steps(0, n):
        offset = itemsize(storage) * i
        store_one(storage, target + offset, load_one(storage, source + offset))


@formula
def write_lines(target, source, n):
    """Some lines past the caches."""
    for i in steps(0, n):
        store_streaming(FLOAT32, target + LINE_BYTES * i, load(FLOAT32, source + LINE_BYTES * i))


@formula
def flush(storage, buffer, target, n, first, last):
    """Write `n` numbers that lie at `buffer` + (target % 64) to `target`; the first and the last tile of a block are told."""
    line, source, n_lines = lines_of_tile(storage, buffer, target, n, first)
    write_lines(line, source, n_lines)
    keep_rest(storage, buffer, target, n, line, source, n_lines, last)


@formula
def lines_of_tile(storage, buffer, target, n, first):
    """The whole lines of `flush`: where they go, where they lie, and how many. What is before them, which only the first tile has,
    is written."""
    size = itemsize(storage)
    before = target & (LINE_BYTES - 1)
    end = target + n * size
    skipped = first & (before != 0)

    def head():
        write_numbers(storage, target, buffer + before, least(n, (LINE_BYTES - before) >> log2_of(size)))

    when(skipped, head)
    done = select(skipped, LINE_BYTES, 0)
    line = target - before + done
    return line, buffer + done, greatest(end - line, 0) >> log2_of(LINE_BYTES)


@formula
def keep_rest(storage, buffer, target, n, line, source, n_lines, last):
    """What is past the whole lines waits for the next tile, once they are written; after the last it is written."""
    end = target + n * itemsize(storage)
    line, source = line + LINE_BYTES * n_lines, source + LINE_BYTES * n_lines

    def tail():
        # from the line's begin: what an earlier tile of the block left there waits, too
        when(last, lambda: write_numbers(storage, line, source, (end - line) >> log2_of(itemsize(storage))))
        store(FLOAT32, buffer, load(FLOAT32, source))

    when(line < end, tail)
