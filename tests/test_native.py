"""How the emulator's functions are compiled: once for the types of their arguments."""

import pytest
from numba import types

from batchline.bench.measure.emulator import number_formats, order


def test_constants_of_one_type_are_one_function():
    function = number_formats.encode_magnitude
    for constants in ((5, 10, 0), (8, 7, 0)):
        kinds = types.float64, *map(types.literal, constants)
        function.get_call_template(kinds, {})
    compiled = [kinds for kinds in function.signatures if kinds[0] == types.float64]
    assert compiled == [(types.float64, types.int64, types.int64, types.int64)]


def test_python_is_refused_what_is_not_compiled_for_it():
    with pytest.raises(TypeError, match="has_fault is for compiled code alone"):
        order.has_fault(0)
