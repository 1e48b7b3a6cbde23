"""Running a kernel over its blocks in several threads, by the kernel's address.

One small driver serves every kernel, so that a kernel and a parallel region are each compiled once. The serial path calls the
same kernel without it.
"""

from fastswl.compilation import get_num_threads, parallel_driver, prange, set_num_threads
from fastswl.simd import call_kernel, fetch_and_add, store_int64

#: bytes before the first thread's scratch memory
COUNTER_BYTES = 64


@parallel_driver
def run_parallel(kernel, plan, scratch, scratch_bytes, n_blocks, n_threads, callers, alone):
    """Blocks in at most `n_threads` threads, each taking the next when it is done (the first word of `scratch` counts).

    Which thread takes a block changes no bit: results lie per row, and sums per block. At `callers` stands how many calls are
    in here: each asks for its share only, and with `alone` for a parallel region only when it is the first.
    """
    others = fetch_and_add(callers, 1)
    share = n_threads // (others + 1)
    if share < 2 or (alone != 0 and others > 0):
        call_kernel(kernel, plan, scratch + COUNTER_BYTES, 0, n_blocks)
    else:
        store_int64(scratch, 0)
        # Numba's setting is the user's, for kernels of their own
        users_setting = get_num_threads()
        set_num_threads(share)
        for thread in prange(share):
            own_scratch = scratch + COUNTER_BYTES + thread * scratch_bytes
            block = fetch_and_add(scratch, 1)
            while block < n_blocks:
                call_kernel(kernel, plan, own_scratch, block, block + 1)
                block = fetch_and_add(scratch, 1)
        set_num_threads(users_setting)
    fetch_and_add(callers, -1)
    return 0
