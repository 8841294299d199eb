"""The kernel library: loaded where it fits, named where it does not, clean under sanitizers, and never needed."""

from __future__ import annotations

import ctypes
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from snnrobust.kernels import available, native, status
from snnrobust.neurons import LIF

ROOT = Path(native.__file__).parents[2]
CSRC = Path(native.__file__).parent / "csrc"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
built = pytest.mark.skipif(not native.available(), reason="needs the compiled kernels")
checkout = pytest.mark.skipif(not CSRC.exists() or not (ROOT / "setup.py").exists(), reason="needs a checkout")
DRIVER = Path(__file__).parent / "driver.c"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the library is looked for: a folder of our own."""
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    monkeypatch.delenv("SNNROBUST_KERNELS", raising=False)
    native._library.cache_clear()
    yield tmp_path
    native._library.cache_clear()


def _library():
    return Path(native.__file__).parent / f"_native{SUFFIX}"


def _falls_back(reason):
    assert not available()
    assert status().startswith("torch operations; no compiled kernels: ")
    assert reason in status()
    x = torch.rand(4, 2, 3, requires_grad=True)
    LIF()(x).sum().backward()
    assert x.grad.shape == x.shape
    with pytest.raises(RuntimeError, match="no compiled kernels"):
        native.function("lif_forward")


def test_a_missing_library(folder):
    _falls_back("it was not built: install again where there is a C compiler")


@pytest.mark.parametrize("content", [b"", b"no library at all", b"\x7fELF", b"\x7fELF\x02\x01\x01" + bytes(4000)])
def test_a_damaged_file(folder, content):
    (folder / f"_native{SUFFIX}").write_bytes(content)
    _falls_back("cannot be loaded on this machine")
    assert "install again" in status()


@built
@pytest.mark.parametrize("machine", [183, 243, 3])  # AArch64, RISC-V, 32-bit x86
def test_a_library_of_another_processor(folder, machine):
    content = bytearray(_library().read_bytes())
    if content[:4] != b"\x7fELF" or int.from_bytes(content[18:20], "little") == machine:
        pytest.skip("not such a library")
    content[18:20] = machine.to_bytes(2, "little")
    (folder / f"_native{SUFFIX}").write_bytes(content)
    _falls_back("cannot be loaded on this machine")


@built
def test_a_library_that_is_not_ours(folder):
    other = next(Path(torch.__file__).parent.glob("lib/libtorch_global_deps*"), None)
    if other is None:
        pytest.skip("no other library at hand")
    shutil.copy(other, folder / f"_native{SUFFIX}")
    _falls_back("cannot be loaded on this machine")


@built
def test_a_library_of_other_sources(folder):
    shutil.copy(_library(), folder)
    (folder / "csrc").mkdir()
    (folder / "csrc" / "lif.c").write_text("int other;\n")
    _falls_back("was built from other sources: install again (pip install -e .)")


@built
def test_an_installed_library_needs_no_sources(folder):
    shutil.copy(_library(), folder)
    assert available()
    assert status().startswith("compiled, ")


@built
@pytest.mark.parametrize("wanted", [*native.ISAS, "off", "AVX2", "none"])
def test_the_environment_chooses(folder, monkeypatch, wanted):
    best = native.ISAS.index(status_isa())
    shutil.copy(_library(), folder)
    monkeypatch.setenv("SNNROBUST_KERNELS", wanted)
    native._library.cache_clear()
    if wanted == "off":
        _falls_back("switched off by SNNROBUST_KERNELS=off")
    elif wanted == "none":
        with pytest.warns(UserWarning, match="no compiled kernels: SNNROBUST_KERNELS is 'none'"):
            assert not available()
        _falls_back("SNNROBUST_KERNELS is 'none', which is none of portable, avx2, avx512 and off")
    elif native.ISAS.index(wanted := wanted.lower()) > best:
        with pytest.warns(UserWarning, match=f"no compiled kernels: SNNROBUST_KERNELS asks for {wanted}"):
            assert not available()
        _falls_back(f"SNNROBUST_KERNELS asks for {wanted}, and this processor has")
    else:
        assert status().split(" (")[0] == f"compiled, {wanted}"


def status_isa():
    library = ctypes.CDLL(str(_library()))
    return native.ISAS[library.snn_level()]


def _exported():
    """The names of what the library exports."""
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    found = subprocess.run(["nm", "-D", "--defined-only", str(_library())], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("nm does not read the library")
    return {line.split()[-1] for line in found.stdout.splitlines()}


@built
@checkout
def test_each_instruction_set_has_the_same_kernels():
    names = _exported()
    per_isa = [{n.removesuffix(f"_{isa}") for n in names if n.endswith(f"_{isa}")} for isa in native.ISAS]
    per_isa = [kernels for kernels in per_isa if kernels]
    assert {"lif_forward", "lif_backward", "norm_moments", "norm_backward"} <= per_isa[0]
    assert all(kernels == per_isa[0] for kernels in per_isa)
    others = {n for n in names if not any(n.endswith(f"_{isa}") for isa in native.ISAS)}
    assert {n for n in others if not n.startswith("_")} == {"snn_digest", "snn_level", "snn_threads"}


@built
@checkout
def test_the_struct_is_that_of_the_header():
    """Same fields in the same order: compiled, where there is a compiler, and compared by their offsets."""
    from snnrobust.kernels.lif import LifStruct

    text = (CSRC / "lif.h").read_text()
    assert "typedef struct" in text
    fields = [name for name, _ in LifStruct._fields_]
    program = '#include <stddef.h>\n#include <stdio.h>\n#include "lif.h"\nint main(void) {\n'
    program += "".join(f'printf("%zu ", offsetof(Lif, {name}));\n' for name in fields)
    program += 'printf("%zu", sizeof(Lif)); return 0; }\n'
    out = _compiled_program(program, ["-I", str(CSRC)])
    assert [int(n) for n in out.split()] == [getattr(LifStruct, name).offset for name in fields] + [
        ctypes.sizeof(LifStruct)
    ]


def _compiler():
    compiler = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if compiler is None or sys.platform == "win32":
        pytest.skip("no C compiler")
    return compiler


def _compiled_program(text, flags):
    compiler = _compiler()
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        source, program = Path(place) / "program.c", Path(place) / "program"
        source.write_text(text)
        subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True, capture_output=True)
        return subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout


# --- sanitizers ------------------------------------------------------------------------------------------------


@built
@checkout
def test_the_driver_calls_every_kernel():
    exported = {n.removesuffix("_portable") for n in _exported() if n.endswith("_portable")}
    called = re.findall(r'^    \{"(\w+)", \1_once\},$', DRIVER.read_text(), re.MULTILINE)
    assert sorted(called) == sorted(exported), "each kernel needs a function in driver.c and a line in its table"


COMMON = [
    "-std=gnu11",
    "-g",
    "-O1",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp-simd",
    "-pthread",
]
ISAS = {
    "portable": [],
    "avx2": ["-mavx2"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}


def _sanitized(tmp_path, isa, flags, arguments):
    """driver.c with all kernels of an instruction set under a sanitizer, on threads that the library makes itself."""
    compiler, program = _compiler(), tmp_path / "driver"
    if isa not in native.ISAS[: native.ISAS.index(status_isa()) + 1]:
        pytest.skip(f"this processor has no {isa}")
    sources = [str(DRIVER), *sorted(str(f) for f in CSRC.glob("*.c"))]
    command = [
        compiler,
        *COMMON,
        *ISAS[isa],
        *flags,
        f"-DSNN_ISA={isa}",
        "-I",
        str(CSRC),
        *sources,
        "-lm",
        "-o",
        str(program),
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode and ("cannot find" in made.stderr or "unrecognized" in made.stderr):
        pytest.skip("the compiler has no such sanitizer")
    assert made.returncode == 0, made.stderr
    environment = {
        **os.environ,
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    done = subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, env=environment, timeout=500, check=False
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the sanitizer does not run on this kernel")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "calls" in done.stdout


@pytest.mark.slow
@built
@checkout
@pytest.mark.parametrize("isa", native.ISAS)
def test_no_kernel_leaves_its_memory(tmp_path, isa):
    """Addresses, and whatever C leaves undefined: each buffer is a block of its own, of exactly its size."""
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    _sanitized(tmp_path, isa, flags, ["600", "3"])


@pytest.mark.slow
@built
@checkout
def test_no_two_threads_write_to_one_place(tmp_path):
    _sanitized(tmp_path, "portable", ["-fsanitize=thread"], ["600", "4"])


@pytest.mark.slow
@built
def test_a_million_small_calls_leave_no_memory_behind():
    from snnrobust.kernels.lif import lif_forward

    numbers = random.Random(0)
    neuron = LIF(0.9)

    def calls(count):
        for index in range(count):
            x = torch.empty(numbers.randint(1, 4), numbers.randint(0, 3), numbers.randint(1, 40))
            v0 = torch.zeros_like(x[0]) if numbers.random() < 0.5 else None
            hard, keep, timed = (numbers.random() < 0.5 for _ in range(3))
            lif_forward(x, 0, v0, None, 0.9, 1.0, None, None, hard, 2 * timed, keep, not keep, timed)
            if index % 50 == 0:
                neuron(x.zero_().requires_grad_()).sum().backward()

    def held():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc")
    calls(20_000)
    before = held()
    calls(1_000_000)
    assert held() - before < 4 << 20


# --- builds ----------------------------------------------------------------------------------------------------


def _source_tree(tmp_path):
    """What a build needs, copied."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tree)
    leave = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
    shutil.copytree(ROOT / "snnrobust", tree / "snnrobust", ignore=leave)
    return tree


@pytest.mark.slow
@checkout
def test_a_build_without_a_compiler_goes_on_and_says_so(tmp_path):
    tree = _source_tree(tmp_path)
    environment = {**os.environ, "CC": "false", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 'building extension "snnrobust.kernels._native" failed' in done.stdout + done.stderr
    assert not list(tree.glob("snnrobust/kernels/_native*"))
    code = "import snnrobust, torch; from snnrobust.kernels import status; print(snnrobust.__file__, status())"
    environment["PYTHONPATH"] = os.pathsep.join([str(tree), *sys.path])
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert out.startswith(str(tree))
    assert "it was not built" in out


@pytest.mark.slow
@checkout
def test_a_build_has_no_warnings_and_its_own_digest(tmp_path):
    """Under the warnings that find mistakes; and what is built is what these sources are."""
    _compiler()
    tree = _source_tree(tmp_path)
    environment = {**os.environ, "CFLAGS": "-Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-unused-parameter"}
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    made = list(tree.glob("snnrobust/kernels/_native*"))
    assert made, done.stdout[-3000:] + done.stderr[-3000:]
    library = ctypes.CDLL(str(made[0]))
    library.snn_digest.restype = ctypes.c_char_p
    assert library.snn_digest().decode() == native._digest(sorted(CSRC.glob("*.[ch]")))
