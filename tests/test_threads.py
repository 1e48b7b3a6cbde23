"""The library's own thread setting. (Many callers and forked children: `test_embedding.py`.)"""

import pytest

import fastswl as swl


def test_the_setting_is_the_librarys_own():
    import numba

    before, numbas = swl.get_num_threads(), numba.get_num_threads()
    try:
        swl.set_num_threads(1)
        assert swl.get_num_threads() == 1
        assert numba.get_num_threads() == numbas
    finally:
        swl.set_num_threads(before)
    assert swl.get_num_threads() == before


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)])
def test_a_number_of_threads_that_is_none(n, error):
    before = swl.get_num_threads()
    with pytest.raises(error, match=repr(n).replace("-", "-")):
        swl.set_num_threads(n)
    assert swl.get_num_threads() == before
