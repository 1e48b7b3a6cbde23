"""Running a kernel over its blocks in several threads, by the kernel's address.

One small driver serves every kernel, so that a kernel and a parallel region are each compiled once. The serial path calls the
same kernel without it.
"""

from fastswl.compilation import parallel_driver, prange
from fastswl.simd import call_kernel, fetch_and_add, store_int64

#: bytes before the first thread's scratch memory
COUNTER_BYTES = 64


@parallel_driver
def run_parallel(kernel, plan, scratch, scratch_bytes, n_blocks, n_threads):
    """Blocks in `n_threads` threads, each taking the next when it is done (the first word of `scratch` counts).

    Which thread takes a block changes no bit: results lie per row, and sums per block.
    """
    store_int64(scratch, 0)
    for thread in prange(n_threads):
        own_scratch = scratch + COUNTER_BYTES + thread * scratch_bytes
        block = fetch_and_add(scratch, 1)
        while block < n_blocks:
            call_kernel(kernel, plan, own_scratch, block, block + 1)
            block = fetch_and_add(scratch, 1)
    return 0
