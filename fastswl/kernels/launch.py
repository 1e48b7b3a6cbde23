"""Running a kernel over its blocks in several threads, by the kernel's address.

One small driver serves every kernel, so that a kernel and a parallel region are each compiled once. The serial path calls the
same kernel without it.
"""

from fastswl.compilation import get_num_threads, parallel_driver, prange, routine, set_num_threads
from fastswl.simd import call_kernel, fetch_and_add, greatest, least, load_int64, store_int64

#: bytes before a thread's scratch memory: how many of its blocks are taken
COUNTER_BYTES = 64
#: a thread takes one in so many of the blocks that are left of a range
TAKEN_AT_ONCE = 8


@routine
def take_blocks(counter, begin, end):
    """The next blocks of a range of which `counter` says how many are taken: the first of them, and how many, a part of those left."""
    taken = greatest((end - begin - load_int64(counter)) // TAKEN_AT_ONCE, 1)
    return begin + fetch_and_add(counter, taken), taken


@parallel_driver
def run_parallel(kernel, plan, memory, thread_bytes, n_blocks, n_threads, callers, alone):
    """Blocks in at most `n_threads` threads, each of which has `thread_bytes` of `memory`: a counter, and scratch memory.

    A thread goes through a range of its own, so that what it asks for ahead is what it reads next, and then helps the others with
    theirs. It takes several blocks at once while many are left: results of one go out while the next is computed. Which thread
    takes a block changes no bit: results lie per row, sums per block. At `callers` stands how many calls are in here: each asks for
    its share only, and with `alone` for a parallel region only when it is the first.
    """
    others = fetch_and_add(callers, 1)
    share = n_threads // (others + 1)
    if share < 2 or (alone != 0 and others > 0):
        call_kernel(kernel, plan, memory + COUNTER_BYTES, 0, n_blocks)
    else:
        for thread in range(share):
            store_int64(memory + thread * thread_bytes, 0)
        # Numba's setting is the user's, for kernels of their own
        users_setting = get_num_threads()
        set_num_threads(share)
        for thread in prange(share):
            scratch = memory + thread * thread_bytes + COUNTER_BYTES
            for turn in range(share):
                owner = (thread + turn) % share
                counter = memory + owner * thread_bytes
                begin, end = owner * n_blocks // share, (owner + 1) * n_blocks // share
                block, taken = take_blocks(counter, begin, end)
                while block < end:
                    call_kernel(kernel, plan, scratch, block, least(block + taken, end))
                    block, taken = take_blocks(counter, begin, end)
        set_num_threads(users_setting)
    fetch_and_add(callers, -1)
    return 0
