"""Class indices of any integer type, read where they lie."""

from fastswl.compilation import inlined
from fastswl.simd import load_integer, load_integers

#: code of each integer type; the order of the branches below
INDEX_CODES = {"int64": 0, "int32": 1, "uint8": 2, "int8": 3, "int16": 4, "uint16": 5, "uint32": 6, "uint64": 7}
INT64 = INDEX_CODES["int64"]
#: the largest index
LARGEST = 2**63 - 1


@inlined
def load_index(code, address):
    """The class index at `address`; an unsigned one past 2**63 reads as the largest that is signed, which no class is."""
    if code == 0:
        return load_integer(address, 64, True)
    if code == 7:
        chosen = load_integer(address, 64, True)
        return chosen if chosen >= 0 else LARGEST
    if code == 1:
        return load_integer(address, 32, True)
    if code == 2:
        return load_integer(address, 8, False)
    if code == 3:
        return load_integer(address, 8, True)
    if code == 4:
        return load_integer(address, 16, True)
    if code == 5:
        return load_integer(address, 16, False)
    return load_integer(address, 32, False)


@inlined
def load_indices(storage, code, address):
    """As `load_index` of a vector of indices that lie side by side, as float64 (past 2**53 no class is)."""
    if code == 0:
        return load_integers(storage, address, 64, True)
    if code == 7:
        return load_integers(storage, address, 64, False)
    if code == 1:
        return load_integers(storage, address, 32, True)
    if code == 2:
        return load_integers(storage, address, 8, False)
    if code == 3:
        return load_integers(storage, address, 8, True)
    if code == 4:
        return load_integers(storage, address, 16, True)
    if code == 5:
        return load_integers(storage, address, 16, False)
    return load_integers(storage, address, 32, False)


@inlined
def index_bytes(code):
    """Bytes of an index."""
    if code == 0 or code == 7:
        return 8
    if code == 1 or code == 6:
        return 4
    if code == 2 or code == 3:
        return 1
    return 2
