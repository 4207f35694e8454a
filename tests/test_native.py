"""How the emulator's functions are compiled: once for the types of their arguments."""

import numba
import pytest
from numba import types
from numba.core.codegen import CodeLibrary

from batchline.bench.measure.emulator import native, number_formats, order


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


def _halve(number):
    return number // 2


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Compiles `_halve` for int64, or reads it from the disk: the function, and whether
    it was read.
    """
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def compile_it():
        function = native.compile_native(_halve)
        function.get_call_template((types.int64,), {})
        return function, bool(function.stats.cache_hits)

    return compile_it


def test_what_is_called_is_kept_without_machine_code(kept):
    for from_disk in (False, True):
        function, was_read = kept()
        assert was_read == from_disk
        (compiled,) = function.overloads.values()
        (code,) = (part for part in compiled if isinstance(part, CodeLibrary))
        assert code.get_pointer_to_function(compiled.fndesc.llvm_func_name) == 0
        assert numba.njit(lambda number: function(number) + 1)(9) == 5
