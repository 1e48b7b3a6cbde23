"""More than 2**31 elements, very long rows, very many rows: 64-bit indices everywhere."""

import os
import re

import numpy as np
import pytest

import fastswl as swl

pytestmark = pytest.mark.slow

MANY = 2**31 + 13


def test_rows_of_one_class_in_a_sparse_file(tmp_path):
    """Read where they lie. The last row alone is not 0, and its z-loss, 3**2, is the sum of all losses: were row numbers cut
    to 31 bits or addresses to 32, another row would be read in its place. So with the one target that is no class, in the
    last whole vector of targets."""
    x = np.memmap(tmp_path / "logits", np.float16, "w+", shape=(MANY, 1))
    x[-1] = 3.0
    targets = np.broadcast_to(np.int8(0), MANY)
    assert swl.cross_entropy(x, targets, reduction="sum", z_loss=1.0) == 9.0
    targets = np.memmap(tmp_path / "targets", np.int8, "w+", shape=MANY)
    targets[2**31 + 2] = 1
    with pytest.raises(IndexError, match=re.escape(f"targets[{2**31 + 2}]")):
        swl.cross_entropy(x, targets)


@pytest.mark.parametrize("n_classes", [1001, 3001])
def test_broadcast_logits(n_classes):
    """More than 2**31 logits in the memory of one row."""
    row = np.random.default_rng(0).normal(0, 3, n_classes).astype(np.float32)
    n = MANY // n_classes + 1
    x = np.broadcast_to(row, (n, n_classes))
    assert x.size > 2**31
    expected = swl.cross_entropy(row[None], [7])
    assert swl.cross_entropy(x, np.broadcast_to(7, n)) == pytest.approx(expected, rel=1e-12)
    values = swl.logsumexp(x)
    assert (values == swl.logsumexp(row)).all()


def test_a_row_of_2_to_the_29_classes(tmp_path):
    """Its last logits lie more than 2**31 bytes behind the first."""
    n = 2**29 + 9
    x = np.memmap(tmp_path / "logits", np.float32, "w+", shape=(1, n))
    x[0, -1] = 20.0
    total = n - 1 + np.exp(20.0)
    assert swl.logsumexp(x)[0] == pytest.approx(np.log(total), rel=1e-6)
    result = swl.cross_entropy_value_and_grad(x, [n - 1], grad_out=x)
    assert result.loss == pytest.approx(np.log(total) - 20.0, rel=1e-6)
    assert x[0, 5] == pytest.approx(1.0 / total, rel=1e-5)
    assert x[0, -2] == pytest.approx(1.0 / total, rel=1e-5)
    assert x[0, -1] == pytest.approx(np.exp(20.0) / total - 1.0, rel=1e-6)


def test_half_precision_on_disk_beyond_2_to_the_31(tmp_path):
    n = 2**31 // 4096 + 3
    x = np.memmap(tmp_path / "logits", np.float16, "w+", shape=(n, 4096))
    x[-1, 9] = 8.0
    targets = np.full(n, 9)
    losses = swl.cross_entropy(x, targets, reduction="none")
    assert losses[0] == pytest.approx(np.log(4096), rel=1e-6)
    assert losses[-1] == pytest.approx(np.log(4095 + np.exp(8.0)) - 8.0, rel=1e-5)


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="no limit to set")
def test_a_result_that_does_not_fit_is_a_memory_error():
    x = np.broadcast_to(np.float64(0.0), (2**40, 1024))
    targets = np.broadcast_to(np.int8(0), 2**40)
    for call in (
        lambda: swl.softmax(x),
        lambda: swl.cross_entropy_value_and_grad(x, targets),
        lambda: swl.cross_entropy(x, targets, reduction="none", n_threads=1),
    ):
        with pytest.raises(MemoryError):
            call()
