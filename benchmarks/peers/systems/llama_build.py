"""llama.cpp and our driver of it, built from the sources that the PyPI package llama-cpp-python carries."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from zipmoe.errors import InternalError

VERSION = "0.3.36"
CACHE = Path(__file__).parents[3] / ".cache" / "peers"


@dataclass(frozen=True)
class LlamaBuild:
    """What is built.

    Attributes:
        driver: runs jobs.
        advise: library that is preloaded to advise the kernel about mapped files.
    """

    driver: Path
    advise: Path

    @property
    def there(self) -> bool:
        """Whether it has been built."""
        return self.driver.exists() and self.advise.exists()


def llama_build(cache: Path = CACHE) -> LlamaBuild:
    """Where the build is, or will be."""
    return LlamaBuild(cache / "build" / "driver", cache / "build" / "libadvise.so")


def build_llama(cache: Path = CACHE) -> LlamaBuild:
    """Fetches and builds what is not there yet.

    Raises:
        InternalError: a step failed; its output has been shown.

    Cost: 77 MB to fetch, minutes to build.
    """
    built = llama_build(cache)
    if built.there:
        return built
    cache.mkdir(parents=True, exist_ok=True)
    sources = cache / f"llama_cpp_python-{VERSION}"
    if not sources.exists():
        archive = cache / f"{sources.name}.tar.gz"
        if not archive.exists():
            download = ["download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", cache]
            _run(sys.executable, "-m", "pip", *download, f"llama-cpp-python=={VERSION}")
        with tarfile.open(archive) as files:
            files.extractall(cache, filter="data")
    configure = ["-S", Path(__file__).parent / "llama", "-B", cache / "build"]
    _run("cmake", *configure, f"-DLLAMA_CPP={sources / 'vendor' / 'llama.cpp'}", "-DCMAKE_BUILD_TYPE=Release")
    _run("cmake", "--build", cache / "build", "--target", "driver", "advise")
    return built


def _run(*command: object) -> None:
    words = [str(word) for word in command]
    print("+", *words, flush=True)
    if code := subprocess.run(words, check=False).returncode:
        raise InternalError(f"`{' '.join(words[:4])} ...` ended with {code}", next_step="see its output")
