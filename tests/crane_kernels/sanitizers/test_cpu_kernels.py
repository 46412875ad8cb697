"""The compiled CPU code under AddressSanitizer and UndefinedBehaviorSanitizer, by the tests of its operations.

A copy of the package is given libraries that are built with the sanitizers, for the instruction set of this machine,
and runs the tests; any finding ends the run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parents[3]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FLAGS = [
    *["-std=gnu++20", "-O1", "-g1", "-fPIC", "-march=native", "-fvisibility=hidden", "-ffp-contract=fast"],
    *["-DCRANE_ISA=baseline", "-DTORCH_TARGET_VERSION=0x020d000000000000", *SANITIZE],
]
HOST = ROOT / "csrc/registration/host.cpp"
SOURCES = [path for path in sorted((ROOT / "csrc").rglob("*.cpp")) if "cuda" not in str(path.relative_to(ROOT))]
WHOLE = ["test_graph", "test_spmm", "test_propagate", "test_masked_topk", "test_prune_edges", "test_sample_negatives"]
COMPILED = ["test_info_nce", "test_modality_attention", "test_recursive_cross_modal_attention"]  # by tests so named
LEFT_OUT = ["compiles", "export", "opcheck", "torch_compile", "every_instruction_set", "more_than"]  # long

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="preloads the sanitizers' libraries as Linux does")


@pytest.fixture(scope="module")
def compiler() -> str:
    """A g++ with the sanitizers' libraries."""
    found = shutil.which("g++")
    if found is None:
        pytest.skip("no g++")
    if not all(Path(library).is_absolute() for library in _preloaded(found)):
        pytest.skip("g++ has no libasan.so")
    return found


def _preloaded(compiler: str) -> list[str]:
    """The sanitizer's library, and that of the exceptions that it watches."""
    command = (compiler, "-print-file-name=libasan.so"), (compiler, "-print-file-name=libstdc++.so.6")
    return [subprocess.run(c, capture_output=True, text=True, check=True).stdout.strip() for c in command]


@pytest.fixture(scope="module")
def package(compiler: str, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import the package from; what was compiled is kept from one session to the next."""
    cache = getattr(pytestconfig, "cache", None)  # absent under -p no:cacheprovider
    objects = cache.mkdir("sanitized") if cache else tmp_path_factory.mktemp("sanitized")
    folder = tmp_path_factory.mktemp("package")
    copy = shutil.copytree(ROOT / "crane_kernels", folder / "crane_kernels", ignore=shutil.ignore_patterns("*.so"))
    includes = [ROOT / "csrc", sysconfig.get_paths()["include"]]
    headers = b"".join(path.read_bytes() for path in sorted((ROOT / "csrc").rglob("*.h")))
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    command = [compiler, *FLAGS, *(f"-I{path}" for path in includes), *(f"-isystem{path}" for path in include_paths())]

    def compile_one(source: Path) -> Path:
        key = hashlib.sha256(" ".join(command).encode() + version + headers + source.read_bytes()).hexdigest()[:16]
        target = objects / f"{source.parent.name}.{source.stem}-{key}.o"
        if not target.exists():
            for old in objects.glob(f"{source.parent.name}.{source.stem}-*.o"):
                old.unlink()
            partial = target.with_suffix(f".{os.getpid()}")
            done = subprocess.run([*command, "-c", source, "-o", partial], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            partial.replace(target)
        return target

    longest_first = sorted(SOURCES, key=lambda path: path != ROOT / "csrc/spmm/kernel.cpp")  # a third of all the time
    with ThreadPoolExecutor(2) as pool:
        built = dict(zip(longest_first, pool.map(compile_one, longest_first), strict=True))
    host = {HOST: built.pop(HOST), **{path: built[path] for path in SOURCES if path.stem == "isa"}}
    link = [compiler, *SANITIZE, "-shared"]
    torch_library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    subprocess.run([*link, *built.values(), torch_library, "-o", copy / "_ops.so"], check=True)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    subprocess.run([*link, *host.values(), "-o", copy / f"_host{suffix}"], check=True)
    return folder


def run(compiler: str, package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": str(package),
        "LD_PRELOAD": " ".join(_preloaded(compiler)),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "OMP_NUM_THREADS": "2",
    }
    environment.pop("CRANE_ISA", None)
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def test_operations(compiler: str, package: Path) -> None:
    files = [f"tests/crane_kernels/{name}.py" for name in WHOLE + COMPILED]
    chosen = " and ".join([f"({' or '.join([*WHOLE, 'compiled'])})", *(f"not {name}" for name in LEFT_OUT)])
    options = ["-q", "-x", "-p", "no:cacheprovider", "-k", chosen]
    done = run(compiler, package, "-m", "pytest", *options, *files)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout


def test_finds_a_column_out_of_range(compiler: str, package: Path) -> None:
    """What the operator does not look at, because Graph has: the sanitizers are at work."""
    program = """
import crane_kernels, torch
assert crane_kernels.extension.missing() is None
arrays = torch.tensor([0, 1]), torch.tensor([100], dtype=torch.int32), torch.ones(1), None, None, None, None
torch.ops.crane_kernels.spmm(*arrays, torch.ones(100, 64), None, False)
"""
    done = run(compiler, package, "-c", program)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
