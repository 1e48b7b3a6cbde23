"""Keeping threads that are about to be woken off the caller's processor.

Linux wakes a thread on the processor of the one that wakes it if it finds no other that is idle, and in a virtual machine it may find
none: KVM's guests take a processor that sleeps for one that the host has taken away (`available_idle_cpu`). The second thread then
queues up behind the first, for many calls: 4 to 80 ms pass until the balancer comes by. (Zen 3 under KVM, two threads, softmax of 256
rows of 1,000 classes, calls in a row after 100 ms of rest: 185 us each, as in one thread; 115 to 130 with a thread that is woken
elsewhere.) So the caller's processor is taken out of the others' affinity before they are woken, and put back before the call returns.
"""

from fastswl.compilation import routine
from fastswl.kernels.region import (
    GETAFFINITY,
    GETCPU,
    GETTID,
    MASK_BYTES,
    MASKS,
    MOST_PLACED,
    PLACED,
    SETAFFINITY,
    SPARE_MASK,
    WORKERS,
)
from fastswl.simd import call_function, load_int64, store_int64


@routine
def this_thread(region):
    """The system's number of the current thread, 0 where it is not to be had."""
    gettid = load_int64(region + GETTID)
    return call_function(gettid, 0, 0, 0, 0, 0) if gettid != 0 else 0


@routine
def note_worker(region, thread, caller):
    """Note who runs the share `thread`, if it is not the caller."""
    if 0 < thread <= MOST_PLACED:
        worker = this_thread(region)
        if worker != caller:
            store_int64(region + WORKERS + 8 * (thread - 1), worker)


@routine
def keep_off_this_processor(region):
    """Take the current processor out of the affinity of all threads noted, where another is left to them.

    For the first call in the region alone: another would take what is changed here for what was there before.
    """
    get_affinity, set_affinity = load_int64(region + GETAFFINITY), load_int64(region + SETAFFINITY)
    getcpu = load_int64(region + GETCPU)
    processor = call_function(getcpu, 0, 0, 0, 0, 0) if getcpu != 0 else -1
    for number in range(MOST_PLACED):
        worker = load_int64(region + WORKERS + 8 * number)
        store_int64(region + PLACED + 8 * number, 0)
        mask = region + MASKS + number * MASK_BYTES
        if (
            worker != 0
            and 0 <= processor < 8 * MASK_BYTES
            and call_function(get_affinity, worker, MASK_BYTES, mask, 0, 0) == 0
        ):
            word = mask + processor // 64 * 8
            allowed = load_int64(word)
            store_int64(word, allowed & ~(1 << processor % 64))
            # refused if none is left
            if load_int64(word) != allowed and call_function(set_affinity, worker, MASK_BYTES, mask, 0, 0) == 0:
                store_int64(region + PLACED + 8 * number, worker)
            store_int64(word, allowed)


@routine
def let_go_anywhere(region):
    """Put back what `keep_off_this_processor` changed.

    Who may run on all processors that the process has is asked for all that there are: so it takes part if they become more.
    """
    get_affinity, set_affinity = load_int64(region + GETAFFINITY), load_int64(region + SETAFFINITY)
    everywhere = region + SPARE_MASK
    for number in range(MOST_PLACED):
        worker = load_int64(region + PLACED + 8 * number)
        if worker != 0:
            mask = region + MASKS + number * MASK_BYTES
            for word in range(everywhere, everywhere + MASK_BYTES, 8):
                store_int64(word, -1)
            call_function(set_affinity, worker, MASK_BYTES, everywhere, 0, 0)
            call_function(get_affinity, worker, MASK_BYTES, everywhere, 0, 0)
            changed = False
            for place in range(0, MASK_BYTES, 8):
                changed |= load_int64(everywhere + place) != load_int64(mask + place)
            if changed:
                call_function(set_affinity, worker, MASK_BYTES, mask, 0, 0)
