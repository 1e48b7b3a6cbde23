"""What calls in parallel regions of a process share: where things lie in its memory."""

#: other threads that are placed: to place one takes a microsecond, and of many threads few are in each other's way
MOST_PLACED = 15
#: bytes of a set of processors (Linux refuses less than it has: 1024)
MASK_BYTES = 128
# How many calls are in a region; addresses of functions, zero where there are none: the system's, those of Numba's pool of threads,
# and what runs one share or all; who other threads are; of whom the affinity was changed, what it was before; and a set to write to.
CALLERS, GETTID, GETCPU, GETAFFINITY, SETAFFINITY, ADD_TASK, SYNCHRONIZE, TASK, LOOP = range(0, 72, 8)
WORKERS = 72
PLACED = WORKERS + 8 * MOST_PLACED
MASKS = PLACED + 8 * MOST_PLACED
SPARE_MASK = MASKS + MOST_PLACED * MASK_BYTES
REGION_BYTES = SPARE_MASK + MASK_BYTES
