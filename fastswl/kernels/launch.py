"""Running a kernel over its blocks in several threads, by the kernel's address.

One small driver serves every kernel, so that a kernel and a parallel region are each compiled once. The serial path calls the
same kernel without it.
"""

from fastswl.compilation import parallel_driver, prange
from fastswl.simd import call_kernel, fetch_and_add, store_int64

#: bytes before a thread's scratch memory: how many of its blocks are taken
COUNTER_BYTES = 64


@parallel_driver
def run_parallel(kernel, plan, memory, thread_bytes, n_blocks, n_threads):
    """Blocks in `n_threads` threads, each of which has `thread_bytes` of `memory`: a counter, and scratch memory.

    A thread goes through a range of its own, so that what it asks for ahead is what it reads next, and then helps the others with
    theirs. Which thread takes a block changes no bit: results lie per row, sums per block.
    """
    for thread in range(n_threads):
        store_int64(memory + thread * thread_bytes, 0)
    for thread in prange(n_threads):
        scratch = memory + thread * thread_bytes + COUNTER_BYTES
        for turn in range(n_threads):
            owner = (thread + turn) % n_threads
            counter = memory + owner * thread_bytes
            begin, end = owner * n_blocks // n_threads, (owner + 1) * n_blocks // n_threads
            block = begin + fetch_and_add(counter, 1)
            while block < end:
                call_kernel(kernel, plan, scratch, block, block + 1)
                block = begin + fetch_and_add(counter, 1)
    return 0
