"""Builds the kernel library ``snnrobust.kernels._native``; everything else about the package is in pyproject.toml.

It is plain C without torch or Python headers, compiled once for each instruction set and chosen among at run time. Where there
is no compiler the installation goes on without it, and torch operations take its place.
"""

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("snnrobust/kernels/csrc")
# No fast-math: the forward pass of a kernel and of its fallback give the same bits. What is switched off changes no value.
FLAGS = [
    "-std=gnu11", "-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden",
]  # fmt: skip
ISAS = {"portable": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    ISAS["avx2"] = ["-mavx2", "-mprefer-vector-width=256"]
    ISAS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
ONCE = ("library.c", "parallel.c")
"""Sources that are the same for every instruction set."""


def digest() -> str:
    """Of the sources: tells a library that was built from others. ``snnrobust.kernels.native`` computes it likewise."""
    files = sorted(SOURCES.glob("*.[ch]"))
    return hashlib.blake2b(b"".join(f.name.encode() + f.read_bytes() for f in files), digest_size=8).hexdigest()


class build_kernels(build_ext):  # noqa: N801 (the name of a command)
    def build_extension(self, ext: Extension) -> None:
        openmp = self._openmp()
        macros = [("SNN_DIGEST", f'"{digest()}"')]
        once = [str(SOURCES / name) for name in ONCE]
        objects = self._compile(once, "once", [*FLAGS, *openmp], macros)
        others = sorted(str(f) for f in SOURCES.glob("*.c") if f.name not in ONCE)
        jobs = [(source, isa, flags) for isa, flags in ISAS.items() for source in others]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # the compilers run in processes of their own
            made = pool.map(
                lambda job: self._compile(
                    [job[0]], job[1], [*FLAGS, "-fopenmp-simd", *job[2]], [*macros, ("SNN_ISA", job[1])]
                ),
                jobs,
            )
            objects += [name for names in made for name in names]
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=openmp, libraries=["m"], build_temp=self.build_temp
        )

    def _compile(self, sources: list[str], folder: str, flags: list[str], macros: list[tuple[str, str]]) -> list[str]:
        return self.compiler.compile(
            sources,
            output_dir=str(Path(self.build_temp) / folder),
            macros=macros,
            extra_postargs=flags,
            depends=[str(f) for f in SOURCES.glob("*.[ch]")],
        )

    def _openmp(self) -> list[str]:
        """``["-fopenmp"]`` where the compiler has it; else threads are made by the library itself."""
        compiler = getattr(self.compiler, "compiler_so", None)
        if sys.platform == "win32" or not compiler:
            return []
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.c"
            source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
            command = [compiler[0], "-fopenmp", str(source), "-o", str(Path(folder) / "probe")]
            try:
                found = subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
            except (OSError, subprocess.TimeoutExpired):
                return []
        return ["-fopenmp"] if found else ["-pthread"]


setup(
    ext_modules=[
        Extension("snnrobust.kernels._native", sources=[str(f) for f in sorted(SOURCES.glob("*.c"))], optional=True)
    ],
    cmdclass={"build_ext": build_kernels},
)
