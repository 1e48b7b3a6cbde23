"""Dask's threaded scheduler over blocks of an array."""

import dask
import dask.array
import numpy as np
from common import finish

import fastswl as swl

x = np.random.default_rng(0).normal(0, 3, (40_000, 30)).astype(np.float32)
expected = swl.log_softmax(x, n_threads=1)
failures = []
for workers in (1, 4, 16):
    blocks = dask.array.from_array(x, chunks=(3000, 30))
    with dask.config.set(scheduler="threads", num_workers=workers):
        result = blocks.map_blocks(swl.log_softmax, dtype=x.dtype).compute()
    if not np.array_equal(result, expected):
        failures.append(f"other answers with {workers} workers")
finish(failures)
