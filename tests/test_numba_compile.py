"""What is pinned of a Numba kernel is what its dispatcher would load on a GPU, linked
as the dispatcher links it.
"""

import pytest

from batchline import kernels
from batchline.bench.measure.compiled import compiler, sass
from batchline.kernels import backends
from batchline.kernels._cuda.launch import jit_for

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(
        bool(compiler.why_cannot_compile("numba_cuda"))
        or backends.interpreted("numba_cuda"),
        reason="needs Numba's compiler",
    ),
    pytest.mark.filterwarnings("ignore:Grid size"),
]
VARIANTS = (
    "grad_reduce/numba_cuda_vectorised",
    "grad_reduce/numba_cuda_two_stage",
)  # with launch bounds, and without


@pytest.fixture
def links(monkeypatch):
    """Of each link that Numba asks for: nvJitLink's options, and the kind and the bytes
    of each part.
    """
    from numba.cuda.cudadrv import driver

    asked, link = [], driver.Linker

    def noted(*parts, options):
        asked.append(
            (
                options.as_bytes("nvjitlink"),
                [(part.code_type, bytes(part.code)) for part in parts],
            )
        )
        return link(*parts, options=options)

    monkeypatch.setattr(driver, "Linker", noted)
    return asked


def _inputs(name):
    variant = kernels.ops[name.partition("/")[0]].variants[name.partition("/")[2]]
    return variant, variant.op.make_inputs(*variant.example, "float32", "cpu")


def _launch(monkeypatch, name, architecture):
    """Call the variant with all of the dispatcher's launch but its last step; the
    cubins that it would load.
    """
    from numba.cuda.dispatcher import _Kernel

    loaded, variant_and_inputs = [], _inputs(name)
    not_loaded = compiler._not_loaded
    monkeypatch.setattr(
        compiler,
        "_not_loaded",
        lambda cubin, *functions: loaded.append(cubin.code)
        or not_loaded(cubin, *functions),
    )
    monkeypatch.setattr(_Kernel, "launch", lambda *_: None)
    with compiler.no_device(architecture):
        variant_and_inputs[0](*variant_and_inputs[1])
    return loaded


def _how(links):
    """The options, and the kinds of what is linked: the code itself has a number in its
    name that counts kernels.
    """
    return [
        (options, [kind for kind, _ in parts])
        for options, parts in links
        if b"-ptx" not in options
    ]


def _code(cubin):
    return b"".join(sass._code_sections(cubin))


@pytest.mark.parametrize("name, architecture", [(VARIANTS[0], 90), (VARIANTS[1], 80)])
def test_what_is_read_is_what_a_launch_would_load(
    monkeypatch, links, name, architecture
):
    captured = compiler.launches_of(*_inputs(name), architecture)
    read = _how(links)
    links.clear()
    loaded = _launch(monkeypatch, name, architecture)
    assert [_code(launch.cubin) for launch in captured] == [
        _code(cubin) for cubin in loaded
    ]
    assert read == _how(links)
    assert all(b"-lto" in options and kinds == ["ltoir"] for options, kinds in read)


def test_the_ptx_is_of_the_same_parts_and_options(links):
    (captured,) = compiler.launches_of(*_inputs(VARIANTS[0]), 90)
    (cubin_options, parts), (ptx_options, the_same) = links
    assert set(ptx_options) - set(cubin_options) == {b"-ptx"} and the_same == parts
    assert ".target sm_90a" in captured.ptx and "\0" not in captured.ptx


def test_kernels_are_linked_with_lto_unless_they_say_otherwise():
    from numba import cuda

    assert cuda.jit(lambda: None).targetoptions["lto"]
    assert jit_for(128)(lambda: None).targetoptions["lto"]


def test_a_kernel_without_lto_is_compiled_without_it(links):
    from numba import cuda

    kernel = cuda.jit(lambda: None, lto=False)
    with compiler.no_device(90):
        ptx, cubin = compiler.compile_as_launched(kernel, ())
    ((options, ((kind, code),)),) = links
    assert (
        (kind, code.decode()) == ("ptx", ptx)
        and b"-lto" not in options
        and cubin[:4] == b"\x7fELF"
    )
