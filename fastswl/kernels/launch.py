"""Running a kernel over its blocks in several threads, by the kernel's address.

One small driver serves every kernel, so that a kernel and a parallel region are each compiled once. The serial path calls the
same kernel without it.
"""

from fastswl.compilation import block_kernel, get_num_threads, parallel_driver, prange, routine, set_num_threads
from fastswl.kernels.placing import keep_off_this_processor, let_go_anywhere, note_worker, this_thread
from fastswl.kernels.region import ADD_TASK, CALLERS, LOOP, SYNCHRONIZE, TASK
from fastswl.simd import call_function, call_kernel, fetch_and_add, greatest, least, load_int64, store_int64

# What lies before a thread's scratch memory: how many of its blocks are taken, and at the caller's, what all are to run.
TAKEN, KERNEL, PLAN, THREAD_BYTES, N_BLOCKS, SHARE, REGION, CALLER = range(0, 64, 8)
HEAD_BYTES = 64
#: how shares are handed out
IN_A_LOOP, AS_TASKS, IF_ALONE = range(3)
#: a thread takes one in so many of the blocks that are left of a range
TAKEN_AT_ONCE = 4


@routine
def describe(memory, kernel, plan, thread_bytes, n_blocks, share, region):
    """Write down at `memory` what `run_share` is to run."""
    store_int64(memory + KERNEL, kernel)
    store_int64(memory + PLAN, plan)
    store_int64(memory + THREAD_BYTES, thread_bytes)
    store_int64(memory + N_BLOCKS, n_blocks)
    store_int64(memory + SHARE, share)
    store_int64(memory + REGION, region)
    store_int64(memory + CALLER, this_thread(region))
    for thread in range(share):
        store_int64(memory + thread * thread_bytes + TAKEN, 0)


@routine
def take_blocks(counter, begin, end):
    """The next blocks of a range of which `counter` says how many are taken: the first of them, and how many, a part of those left."""
    taken = greatest((end - begin - load_int64(counter)) // TAKEN_AT_ONCE, 1)
    return begin + fetch_and_add(counter, taken), taken


@routine
def run_share(memory, thread):
    """A thread's share of the blocks.

    A thread goes through a range of its own, so that what it asks for ahead is what it reads next, and then helps the others with
    theirs. It takes several blocks at once while many are left: results of one go out while the next is computed. Which thread
    takes a block changes no bit: results lie per row, sums per block.
    """
    note_worker(load_int64(memory + REGION), thread, load_int64(memory + CALLER))
    kernel, plan = load_int64(memory + KERNEL), load_int64(memory + PLAN)
    thread_bytes, n_blocks, share = (
        load_int64(memory + THREAD_BYTES),
        load_int64(memory + N_BLOCKS),
        load_int64(memory + SHARE),
    )
    scratch = memory + thread * thread_bytes + HEAD_BYTES
    for turn in range(share):
        owner = (thread + turn) % share
        counter = memory + owner * thread_bytes + TAKEN
        begin, end = owner * n_blocks // share, (owner + 1) * n_blocks // share
        block, taken = take_blocks(counter, begin, end)
        while block < end:
            call_kernel(kernel, plan, scratch, block, least(block + taken, end))
            block, taken = take_blocks(counter, begin, end)


@block_kernel
def share_task(memory, thread, _steps, _data):
    """A share as a task of Numba's pool."""
    run_share(memory, thread)
    return 0


@parallel_driver
def share_loop(task, memory, share):
    """All shares in Numba's own loop."""
    # Numba's setting is the user's, for kernels of their own
    users_setting = get_num_threads()
    set_num_threads(share)
    for thread in prange(share):
        call_function(task, memory, thread, 0, 0, 0)
    set_num_threads(users_setting)
    return 0


@block_kernel
def run_blocks(kernel, plan, memory, thread_bytes, n_blocks, n_threads, region, way, asleep):
    """Blocks in at most `n_threads` threads, each of which has `thread_bytes` of `memory`: a head, and scratch memory.

    At `region` stands how many calls are in here: each asks for its share only. The group of tasks of Numba's pool is for one call
    at a time (`AS_TASKS`). With `IF_ALONE` a call is in several threads only when it is the first. With `asleep` the others have to
    be woken.

    Numba's loop makes a new arena of TBB's for every region, which costs 9 us until the caller begins and 18 until another thread
    does; tasks go to the arena where the others still look for work: 1 us.
    """
    others = fetch_and_add(region + CALLERS, 1)
    share = n_threads // (others + 1)
    has_way = way == AS_TASKS or (load_int64(region + LOOP) != 0 and not (way == IF_ALONE and others > 0))
    if share < 2 or not has_way:
        call_kernel(kernel, plan, memory + HEAD_BYTES, 0, n_blocks)
    else:
        describe(memory, kernel, plan, thread_bytes, n_blocks, share, region)
        place = asleep != 0 and others == 0
        if place:
            keep_off_this_processor(region)
        task = load_int64(region + TASK)
        if way == AS_TASKS:
            for thread in range(1, share):
                call_function(load_int64(region + ADD_TASK), task, memory, thread, 0, 0)
            run_share(memory, 0)
            call_function(load_int64(region + SYNCHRONIZE), 0, 0, 0, 0, 0)
        else:
            call_function(load_int64(region + LOOP), task, memory, share, 0, 0)
        if place:
            let_go_anywhere(region)
    fetch_and_add(region + CALLERS, -1)
    return 0
