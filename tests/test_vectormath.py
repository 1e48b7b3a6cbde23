"""exp and log over vectors, at most 1 ulp off: a sample of what `python -m benchmarks.exhaustive` goes through whole."""

import pytest
from ulp import EXTENDED

from benchmarks import exhaustive


@pytest.mark.skipif(not EXTENDED, reason="longdouble has no more digits than float64 here")
@pytest.mark.parametrize("name", list(exhaustive.PROOFS))
def test_exp_and_log_are_within_an_ulp(name):
    worst = exhaustive.PROOFS[name](1_000_000, 1)
    assert worst.inputs >= 900_000
    assert worst.ulp <= exhaustive.BOUND, worst
