"""Class indices of any integer type, read where they lie."""

import functools

from fastswl.simd import choose, formula, load_integer, load_integers, select

#: code of each integer type; the order of `_INTEGERS`
INDEX_CODES = {"int64": 0, "int32": 1, "uint8": 2, "int8": 3, "int16": 4, "uint16": 5, "uint32": 6, "uint64": 7}
#: the largest index
LARGEST = 2**63 - 1


#: bits, and whether there is a sign, of the type of each code
_INTEGERS = ((64, True), (32, True), (8, False), (8, True), (16, True), (16, False), (32, False), (64, False))


@formula
def load_index(code, address):
    """The class index at `address`; an unsigned one past 2**63 reads as the largest that is signed, which no class is."""

    def past_the_largest():
        chosen = load_integer(address, 64, True)
        return select(chosen >= 0, chosen, LARGEST)

    alternatives = [functools.partial(load_integer, address, *integer) for integer in _INTEGERS[:-1]]
    return choose(code, *alternatives, past_the_largest)


@formula
def load_indices(storage, code, address):
    """As `load_index` of a vector of indices that lie side by side, as float64; of one 2**51 or more from 0 some number that is no
    class, or NaN."""
    return choose(code, *[functools.partial(load_integers, storage, address, *integer) for integer in _INTEGERS])


@formula
def vectors_serve(plan):
    """Whether vectors of indices can be compared with `ignore_index`."""
    return (plan.ignore_index < 2**51) & (plan.ignore_index > -(2**51))


@formula
def index_bytes(code):
    """Bytes of an index."""
    return choose(code, *[functools.partial(int, bits // 8) for bits, _ in _INTEGERS])
