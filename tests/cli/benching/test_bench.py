"""`zipmoe bench`: what its results hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.run import zipmoe
from tests.services.tiny_store import make_store
from zipmoe.bench import codec_rounds as bench_codec
from zipmoe.codec.raw import RawCodec
from zipmoe.codec.registry import codec_names

QUICK = ("--rounds", "1", "--matrices", "1")
ROW_KEYS = {
    "codec", "data", "threads", "ratio", "limit", "recover_gbps", "encode_gbps", "vs_memcpy", "vs_zstd1", "exact",
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synth") / "checkpoint"
    assert zipmoe("synth", "qwen2_moe", path, "--layers", "1", "--hidden", "32", "--experts", "4").exit_code == 0
    return path


def test_codecs_are_measured_on_three_kinds_of_data(monkeypatch: pytest.MonkeyPatch) -> None:
    from zipmoe.cli.benching import bench_codec as verb

    monkeypatch.setattr(verb, "_ROWS", 64)
    monkeypatch.setattr(verb, "_COLS", 64)
    result = zipmoe("bench", "codec", "--json", "--threads", "1,2", *QUICK).json
    assert {"cpu", "cores", "kernel", "zstd"} <= result["machine"].keys()
    assert all(row.keys() >= ROW_KEYS and row["exact"] is True for row in result["rows"])
    measured = {(row["data"], row["threads"], row["codec"]) for row in result["rows"]}
    assert measured >= {
        (data, threads, name)
        for data in ("gaussian", "row-scaled", "heavy-tailed")
        for threads in (1, 2)
        for name in ("memcpy", "native-zstd-1", *codec_names())
    }


def test_codecs_are_measured_on_a_store_and_on_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path).path
    plot = tmp_path / "codecs.png"
    ran = zipmoe(
        "bench", "codec", "--codec", "zstd", "--data", store, "--data", checkpoint, "--plot", plot, "--json", *QUICK
    )
    assert [(row["data"], row["codec"]) for row in ran.json["rows"]] == [
        (str(data), name) for data in (store, checkpoint) for name in ("memcpy", "native-zstd-1", "zstd")
    ]
    assert all(row["exact"] for row in ran.json["rows"])
    assert plot.stat().st_size > 0


def test_people_get_a_table(tmp_path: Path) -> None:
    ran = zipmoe("bench", "codec", "--codec", "raw", "--data", make_store(tmp_path).path, *QUICK)
    assert ran.exit_code == 0
    assert "native-zstd-1" in ran.stdout and "/ memcpy" in ran.stdout


def test_a_codec_that_is_not_exact_ends_in_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(self: RawCodec, e_chunk: bytes, sm: bytes, out: memoryview) -> None:
        out[:] = bytes(out.nbytes)

    monkeypatch.setattr(RawCodec, "recover", lose)
    ran = zipmoe("bench", "codec", "--codec", "raw", "--data", make_store(tmp_path).path, "--json", *QUICK)
    assert ran.exit_code == 1
    assert [row["exact"] for row in ran.json["rows"]] == [True, True, False]


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("--codec", "middle-out"), "InvalidRequest"),
        (("--threads", "none"), "InvalidRequest"),
        (("--threads", "0"), "InvalidRequest"),
        (("--rounds", "0"), "InvalidRequest"),
        (("--matrices", "0"), "InvalidRequest"),
        (("--data", "/nonexistent"), "NotFound"),
        (("--plot", "/nonexistent/plot.png"), "InvalidRequest"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: tuple[str, str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zipmoe.cli.benching import bench_codec as verb

    monkeypatch.setattr(verb, "_ROWS", 8)
    ran = zipmoe("bench", "codec", "--json", "--codec", "raw", *arguments)
    assert (ran.exit_code, ran.error["class"]) == (2, kind)


FFN_KEYS = {
    "kernel",
    "m",
    "n",
    "k",
    "threads",
    "ms",
    "vs_torch",
    "vs_bf16",
    "ratio",
    "convert_gbps",
    "differing_outputs",
}


def test_linears_are_measured_beside_torch() -> None:
    result = zipmoe(
        "bench", "ffn", "--shape", "24x70", "--shape", "16x64", "--m", "1,5", "--threads", "1,2", "--json", *QUICK[:2]
    ).json
    assert result["machine"]["torch"]
    assert all(row.keys() >= FFN_KEYS for row in result["rows"])
    assert {
        (row["kernel"], row["m"], row["n"], row["k"], row["threads"])
        for row in result["rows"]
        if row["kernel"] not in ("tile", "nibble")
    } == {
        (kernel, m, n, k, threads)
        for kernel in ("bf16", "fused_cascade")
        for m in (1, 5)
        for n, k in ((24, 70), (16, 64))
        for threads in (1, 2)
    }


def test_people_get_a_table_of_linears() -> None:
    ran = zipmoe("bench", "ffn", "--shape", "16x64", "--m", "1", *QUICK[:2])
    assert ran.exit_code == 0
    assert "fused_cascade" in ran.stdout and "16 x 64" in ran.stdout


@pytest.mark.parametrize(
    "arguments", [("--shape", "16"), ("--shape", "0x4"), ("--m", "0"), ("--rounds", "0"), ("--working-set", "much")]
)
def test_linears_that_cannot_be_measured_are_refused(arguments: tuple[str, str]) -> None:
    ran = zipmoe("bench", "ffn", "--json", "--shape", "8x8", "--m", "1", *arguments)
    assert (ran.exit_code, ran.error["class"]) == (2, "InvalidRequest")


def test_measuring_codecs_loads_no_heavy_library(checkpoint: Path) -> None:
    code = (
        "import sys, contextlib, zipmoe.cli.__main__ as m\n"
        "with contextlib.suppress(SystemExit):\n"
        f"    m.app(['bench', 'codec', '--codec', 'raw', '--rounds', '1', '--data', {str(checkpoint)!r}])\n"
        "print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *table, loaded = ran.stdout.splitlines()
    assert any(bench_codec.ZSTD1 in line for line in table)
    assert not {"torch", "transformers", "grpc", "matplotlib"} & set(loaded.split())
