"""The fuzz target on its corpus and on some mutations, under AddressSanitizer and UndefinedBehaviorSanitizer.

`make fuzz` runs the same target under libFuzzer for longer.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz.target import CORPUS, SUBJECTS, build_driver
from tests.kernels.emulated.machine import Unobtainable

MUTATIONS = 20_000


@pytest.fixture(scope="module")
def driver() -> Path:
    try:
        return build_driver()
    except Unobtainable as reason:
        pytest.skip(f"no fuzz driver with sanitizers: {reason}")


def test_the_corpus_has_inputs_for_every_subject() -> None:
    subjects = Counter(path.read_bytes()[:1] for path in CORPUS.iterdir())
    assert all(subjects[bytes([subject])] >= 10 for subject in range(SUBJECTS))


@pytest.mark.slow
def test_no_mutation_of_the_corpus_makes_a_kernel_leave_its_buffers_or_differ_from_the_others(driver: Path) -> None:
    corpus = sorted(CORPUS.iterdir())
    ran = subprocess.run([driver, str(MUTATIONS), *corpus], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-8000:]
    executions, accepted = map(int, re.findall(r"\d+", ran.stdout))
    assert executions == len(corpus) + MUTATIONS
    assert accepted >= len(corpus) // 4
