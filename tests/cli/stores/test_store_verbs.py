"""`zipmoe synth | pack | verify | inspect | plan` on a real, tiny checkpoint."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.calibration.measurement_time import shared_cache
from tests.cli.run import zipmoe
from tests.model.hub import edit_checkpoint
from tests.services.tiny_store import TinyStore, make_store
from zipmoe.cli.stores import pack
from zipmoe.codec.registry import default_codec
from zipmoe.store.format.manifest import read_manifest, seal_manifest
from zipmoe.store.pack import writer

__all__ = ["shared_cache"]

SENTENCE_PIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"
TIKTOKEN = b"IQ== 0\nIg== 1\n"
SYNTH = ("--layers", "2", "--hidden", "32", "--experts", "4", "--vocab", "300", "--seed", "5")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synth") / "checkpoint"
    assert zipmoe("synth", "qwen2_moe", path, *SYNTH).exit_code == 0
    return path


@pytest.fixture(scope="module")
def packed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pack") / "store"
    assert zipmoe("pack", checkpoint, path).exit_code == 0
    return path


@pytest.fixture
def damaged(tmp_path: Path) -> TinyStore:
    store = make_store(tmp_path)
    store.damage(store.keys()[1])
    return store


class TestSynth:
    def test_it_takes_the_sizes_that_are_given(self, checkpoint: Path) -> None:
        config = json.loads((checkpoint / "config.json").read_text())
        names = ("model_type", "num_hidden_layers", "hidden_size", "num_experts", "vocab_size")
        assert [config[name] for name in names] == ["qwen2_moe", 2, 32, 4, 300]

    def test_json_says_what_was_written(self, tmp_path: Path) -> None:
        made = zipmoe("synth", "mixtral", tmp_path / "m", "--layers", "1", "--set", "num_experts_per_tok=1", "--json")
        assert made.json["family"] == "mixtral"
        assert made.json["weight_bytes"] > 0
        assert json.loads((tmp_path / "m" / "config.json").read_text())["num_experts_per_tok"] == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("nonsense",), "no configuration of a 'nonsense' model is known"),
            (("qwen2_moe", "--layers", "0"), "the number of layers is 0, at least 1 is needed"),
            (("qwen2_moe", "--set", "oops"), "--set 'oops' is not NAME=VALUE"),
            (("qwen2_moe", "--shard-size", "big"), "'big' is not a size"),
        ],
    )
    def test_bad_input_is_refused(self, arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
        ran = zipmoe("synth", arguments[0], tmp_path / "m", *arguments[1:])
        assert ran.exit_code == 2
        assert message in ran.stderr
        assert not (tmp_path / "m").exists()


class TestPack:
    def test_json_describes_the_store(self, checkpoint: Path, tmp_path: Path) -> None:
        made = zipmoe(
            "pack", checkpoint, tmp_path / "s", "--codec", "raw", "--e-chunks", "2", "--workers", "1", "--json"
        )
        result = made.json
        assert (result["family"], result["codec"], result["layers"], result["experts"]) == ("qwen2_moe", "raw", 2, 8)
        assert result["already_packed"] is False
        assert made.stderr == ""

    def test_parameters_of_the_codec_are_in_the_manifest(self, checkpoint: Path, tmp_path: Path) -> None:
        options = ("--codec", "cascade", "--codec-option", "block_rows=4")
        assert zipmoe("pack", checkpoint, tmp_path / "s", *options).exit_code == 0
        manifest = read_manifest(tmp_path / "s")
        assert (manifest.codec_name, manifest.codec_parameters) == ("cascade", {"block_rows": 4})

    def test_the_number_of_cast_tensors_is_said(self, checkpoint: Path, tmp_path: Path) -> None:
        wide = edit_checkpoint(
            checkpoint, tmp_path / "wide", lambda tensors: {name: tensor.float() for name, tensor in tensors.items()}
        )
        ran = zipmoe("pack", wide, tmp_path / "s", "--json")
        ((dtype, count),) = ran.json["cast_tensors"].items()
        (warning,) = ran.json["warnings"]
        assert (dtype, warning.split(" were cast")[0]) == ("F32", f"{count} tensors of F32")
        assert warning in ran.stderr
        assert zipmoe("verify", tmp_path / "s", "--against", wide).exit_code == 0
        # The probe of the pack is kept, and `inspect` tells it.
        assert ran.json["requests"] == {"path": "shared", "reason": "", "lazy": ""}
        assert zipmoe("inspect", tmp_path / "s", "--json").json["requests"] == ran.json["requests"]

    def test_settings_that_serving_does_not_follow_are_named(self, checkpoint: Path, tmp_path: Path) -> None:
        other = shutil.copytree(checkpoint, tmp_path / "beams")
        (other / "generation_config.json").write_text(json.dumps({"num_beams": 4, "top_k": 7, "penalty_alpha": 0.6}))
        ran = zipmoe("pack", other, tmp_path / "s", "--json")
        (warning,) = ran.json["warnings"]
        assert "num_beams 4, penalty_alpha 0.6 will not be followed" in warning
        assert warning in ran.stderr
        (other / "generation_config.json").write_text("{")
        assert "a router will refuse it" in zipmoe("pack", other, tmp_path / "t").stderr

    @pytest.mark.parametrize(
        ("files", "reason"),
        [
            ({}, "has no tokenizer: none of tokenizer.json"),
            ({"tokenizer.model": SENTENCE_PIECE}, "needs the package sentencepiece, which is not installed (install"),
            ({"tokenizer.model": TIKTOKEN}, "needs the package tiktoken, which is not installed (install"),
            ({"tokenizer.json": b"{"}, "cannot be loaded: Expecting property name"),
            ({"vocab.txt": b"a"}, "transformers finds no vocabulary in vocab.txt"),
        ],
    )
    def test_a_tokenizer_that_cannot_be_loaded_is_a_warning(
        self, checkpoint: Path, tmp_path: Path, files: dict[str, bytes], reason: str
    ) -> None:
        other = shutil.copytree(checkpoint, tmp_path / "other")
        for path in other.glob("tokenizer*"):
            path.unlink()
        for name, content in files.items():
            (other / name).write_bytes(content)
        ran = zipmoe("pack", other, tmp_path / "s", "--json")
        (warning,) = ran.json["warnings"]
        assert reason in warning and warning.endswith("without it a router serves token ids, no text")
        assert warning in ran.stderr

    def test_a_tokenizer_that_hangs_is_killed_after_the_time_limit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pack, "python_command", lambda *_: [sys.executable, "-c", "while True: pass"])
        (warning,) = pack.tokenizer_warnings(tmp_path, timeout_s=0.5)
        assert "loading it took more than 0.5 s" in warning

    @pytest.mark.parametrize(
        ("program", "reason"),
        [
            ("import os; os.abort()", "ended with exit code -6: it said nothing"),
            ("raise ImportError('no such thing')", "ended with exit code 1: ImportError: no such thing"),
            ("print('[1]')", "ended with exit code 0: it said nothing"),
        ],
    )
    def test_a_tokenizer_that_kills_its_process_is_a_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
    ) -> None:
        monkeypatch.setattr(pack, "python_command", lambda *_: [sys.executable, "-c", program])
        (warning,) = pack.tokenizer_warnings(tmp_path)
        assert reason in warning

    def test_a_process_that_cannot_be_started_is_a_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pack, "python_command", lambda *_: [str(tmp_path / "none")])
        (warning,) = pack.tokenizer_warnings(tmp_path)
        assert "cannot be started: no such file or directory" in warning

    def test_packing_again_says_that_it_was_packed(self, checkpoint: Path, packed: Path) -> None:
        ran = zipmoe("pack", checkpoint, packed, "--json")
        assert (ran.exit_code, ran.json["already_packed"]) == (0, True)

    def test_an_interrupt_says_that_it_can_be_resumed_and_it_can(
        self, checkpoint: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pack_store: Callable[..., Any] = writer.pack_store

        def interrupted(source: Any, dst: Path, options: Any, progress: Callable[[Any], None]) -> Any:
            def on_progress(moment: Any) -> None:
                progress(moment)
                if moment.done_experts == 3:
                    raise KeyboardInterrupt

            return pack_store(source, dst, options, on_progress)

        monkeypatch.setattr(writer, "pack_store", interrupted)
        ran = zipmoe("pack", checkpoint, tmp_path / "s")
        assert ran.exit_code == 130
        assert "the same command resumes where it stopped" in ran.stderr
        assert "unfinished pack" in zipmoe("inspect", tmp_path / "s").stderr
        monkeypatch.undo()
        assert zipmoe("pack", checkpoint, tmp_path / "s").exit_code == 0
        names = sorted(path.name for path in packed.iterdir())
        assert sorted(path.name for path in (tmp_path / "s").iterdir()) == names
        assert all((packed / name).read_bytes() == (tmp_path / "s" / name).read_bytes() for name in names)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--codec", "zip"), "codec 'zip' is not one of"),
            (("--codec-option", "block_rows"), "--codec-option 'block_rows' is not KEY=VALUE"),
            (
                ("--codec", "cascade", "--codec-option", "block_rows=0"),
                "codec cascade does not know parameter block_rows=0",
            ),
            (("--codec", "raw", "--codec-option", "level=1"), "codec raw has no parameters, got level"),
            (("--e-chunks", "0"), "e_chunks_per_tensor has to be 1 to"),
            (("--workers", "0"), "workers have to be 1 to 1024, not 0"),
        ],
    )
    def test_bad_options_are_refused_and_nothing_is_made(
        self, options: tuple[str, ...], message: str, checkpoint: Path, tmp_path: Path
    ) -> None:
        ran = zipmoe("pack", checkpoint, tmp_path / "s", *options)
        assert ran.exit_code == 2
        assert message in ran.stderr
        assert not (tmp_path / "s").exists()

    def test_a_missing_checkpoint_is_named(self, tmp_path: Path) -> None:
        ran = zipmoe("pack", tmp_path / "none", tmp_path / "s", "--json")
        assert (ran.exit_code, ran.error["class"]) == (2, "NotFound")


class TestVerify:
    def test_an_intact_store_is_equal_to_its_checkpoint(self, checkpoint: Path, packed: Path) -> None:
        ran = zipmoe("verify", packed, "--against", checkpoint)
        assert ran.exit_code == 0
        assert ran.stdout.startswith("intact and equal to the checkpoint: 8 experts")

    def test_damage_is_listed_and_exits_with_1(self, damaged: TinyStore) -> None:
        ran = zipmoe("verify", damaged.path)
        assert ran.exit_code == 1
        assert ran.stdout.startswith("damaged: experts-00000.bin: expert 1 of MoE layer 0")
        assert "intact" not in ran.stdout

    def test_damage_is_in_the_json(self, damaged: TinyStore) -> None:
        ran = zipmoe("verify", damaged.path, "--json")
        assert ran.exit_code == 1
        assert (ran.json["intact"], ran.json["compared"]) == (False, False)
        assert [each["file"] for each in ran.json["damages"]] == ["experts-00000.bin"] * len(ran.json["damages"])


class TestInspect:
    def test_what_was_not_probed_here_is_said_not_to_be(
        self, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ZIPMOE_CACHE_DIR", str(tmp_path))
        assert "not probed on this machine" in zipmoe("inspect", packed).stdout
        assert zipmoe("inspect", packed, "--json").json["requests"] is None

    def test_left_out_modules_and_measured_sizes_are_shown(self, packed: Path, tmp_path: Path) -> None:
        store = shutil.copytree(packed, tmp_path / "s")
        document = {k: v for k, v in json.loads((store / "manifest.json").read_bytes()).items() if k != "digest"}
        sizes = {"token_bytes": 2048, "request_bytes": 3 << 20, "experts_per_token": 8, "stock_experts": False}
        (store / "manifest.json").write_bytes(
            seal_manifest({**document, "measured": sizes, "left_out": ["model.visual"]})
        )
        shown = zipmoe("inspect", store).stdout
        for word in ("model.visual: images and sound are not read", "2.00 KiB of cache a token and 3.00 MiB"):
            assert word in shown

    def test_tables_name_model_codec_and_layers(self, packed: Path) -> None:
        shown = zipmoe("inspect", packed).stdout
        for word in ("qwen2_moe", default_codec().name, "model.layers.1.mlp.experts", "gate_up_proj"):
            assert word in shown

    def test_json_has_the_figures(self, packed: Path) -> None:
        described = zipmoe("inspect", packed, "--json").json
        assert (described["family"], described["expert_count"], len(described["layers"])) == ("qwen2_moe", 8, 2)


@pytest.mark.usefixtures("shared_cache")
class TestPlan:
    def test_the_shares_add_up_to_the_budget(self, packed: Path) -> None:
        split = zipmoe("plan", packed, "--memory-budget", "2GiB", "--json").json
        shares = split["store_bytes"] + split["decoder_bytes"] + split["router_bytes"]
        assert split["memory_budget_bytes"] == shares == 2 << 30

    def test_compose_variables_are_the_same_split(self, packed: Path) -> None:
        lines = zipmoe("plan", packed, "--memory-budget", "2GiB", "--compose-env").stdout.splitlines()
        variables = dict(line.split("=") for line in lines if "TOKENS" not in line and "WORKERS" not in line)
        slots = variables["ZIPMOE_CACHE_SLOTS"]
        forms = ("--dense", variables["ZIPMOE_DENSE"], "--tensor-form", variables["ZIPMOE_TENSOR_FORM"])
        split = zipmoe("plan", packed, "--memory-budget", "2GiB", "--cache-slots", slots, *forms, "--json").json
        assert variables == {
            "ZIPMOE_STORE": str(packed),
            "ZIPMOE_MEMORY_BUDGET": str(2 << 30),
            "ZIPMOE_CACHE_SLOTS": split["cache_slots"],
            "ZIPMOE_KV_CACHE": "expanded",
            "ZIPMOE_DENSE": split["dense"],
            "ZIPMOE_DENSE_BYTES": str(split["dense_bytes"]),
            "ZIPMOE_TENSOR_FORM": split["tensor_form"],
            "ZIPMOE_STORE_MEM_LIMIT": str(split["store_bytes"]),
            "ZIPMOE_DECODER_MEM_LIMIT": str(split["decoder_bytes"]),
            "ZIPMOE_ROUTER_MEM_LIMIT": str(split["router_bytes"]),
        }

    def test_compose_takes_the_path_of_the_store_literally(self, packed: Path, tmp_path: Path) -> None:
        odd = tmp_path / "it's $HOME #1"
        odd.symlink_to(packed)
        first, *_ = zipmoe("plan", odd, "--memory-budget", "2GiB", "--compose-env").stdout.splitlines()
        assert first == f"ZIPMOE_STORE='{tmp_path}/it\\'s $HOME #1'"

    def test_more_workers_are_the_decoders_share(self, packed: Path) -> None:
        few, many = (
            zipmoe("plan", packed, "--memory-budget", "2GiB", "--workers", count, "--json").json for count in (1, 9)
        )
        assert many["decoder_bytes"] > few["decoder_bytes"]

    def test_tables_say_how_many_experts_fit_and_how_fast_that_is(self, packed: Path) -> None:
        shown = zipmoe("plan", packed, "--memory-budget", "2GiB", "--cache-slots", "6:5:4").stdout
        assert "5 of 8 experts fit packed (62%), 4 recovered (50%)" in shown
        for words in ("expected residency with 2.00 GiB", "TPOT", "TTFT", "2.00 GiB *", "all experts alike"):
            assert words in shown

    def test_json_has_a_forecast_for_the_budget_and_for_others(self, packed: Path) -> None:
        seen = zipmoe("plan", packed, "--memory-budget", "2GiB", "--prompt-tokens", "32", "--json").json
        asked = seen["forecast"]
        assert asked in seen["budgets"]
        assert asked["experts"]["full"] + asked["experts"]["packed"] == 8
        assert sum(asked["hit_rates"].values()) == pytest.approx(1)
        assert (asked["bytes_per_token"], asked["prompt_tokens"]) == (pytest.approx(0), 32)
        assert asked["cold_ttft_s"] > asked["ttft_s"] > asked["tpot_s"] > 0
        times = [row["tpot_s"] for row in seen["budgets"]]
        assert times == sorted(times, reverse=True) and len(times) >= 8

    def test_the_cache_holds_the_context_where_that_costs_little_and_the_operator_says_nothing(
        self, packed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("zipmoe.planning.kv_tokens.context_of", lambda config: 16384)
        planned = zipmoe("plan", packed, "--memory-budget", "2GiB", "--json").json
        assert [option["tokens"] for option in planned["kv_options"]] == [4096, 8192, 16384]
        assert planned["kv_tokens"] == 16384, "everything fits, so that a longer context costs nothing"
        assert planned["kv_bytes"] == planned["kv_options"][-1]["nbytes"]
        assert "16384 *" in zipmoe("plan", packed, "--memory-budget", "2GiB").stdout
        given = zipmoe("plan", packed, "--memory-budget", "2GiB", "--kv-tokens", "8192", "--json").json
        assert (given["kv_tokens"], given["kv_options"]) == (8192, [])
        assert given["kv_bytes"] == planned["kv_options"][1]["nbytes"]

    def test_a_trace_says_which_experts_are_popular(self, packed: Path, tmp_path: Path) -> None:
        trace = tmp_path / "trace.jsonl"
        entries = [
            {
                "step": step,
                "layer": layer,
                "phase": "decode",
                "experts": [0, 1, 2, 3] if step % 9 == 0 else [1, 2],
                "tokens": 1,
            }
            for step in range(200)
            for layer in (0, 1)
        ]
        trace.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        seen = zipmoe("plan", packed, "--memory-budget", "2GiB", "--trace", trace, "--json").json
        assert seen["based_on"]["popularity"] == f"the trace {trace}"
        blank = zipmoe("plan", packed, "--memory-budget", "2GiB", "--json").json
        smallest = blank["budgets"][1]["bytes_per_token"], seen["budgets"][1]["bytes_per_token"]
        assert smallest[1] < smallest[0]

    def test_plots_are_svg_files(self, packed: Path, tmp_path: Path) -> None:
        assert zipmoe("plan", packed, "--memory-budget", "2GiB", "--plot", tmp_path / "p.svg").exit_code == 0
        assert (tmp_path / "p.svg").read_text().count("<polyline") == 5
        refused = zipmoe("plan", packed, "--memory-budget", "2GiB", "--plot", tmp_path / "p.png", "--json")
        assert (refused.exit_code, refused.error["class"]) == (2, "InvalidRequest")

    def test_where_nothing_can_be_measured_the_split_is_shown_all_the_same(
        self, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("ZIPMOE_CACHE_DIR", str(tmp_path / "file" / "below"))
        seen = zipmoe("plan", packed, "--memory-budget", "2GiB", "--json").json
        assert seen["forecast"] is None and "cannot keep" in seen["no_forecast_because"]
        assert seen["memory_budget_bytes"] == 2 << 30
        assert "no forecast: cannot keep" in zipmoe("plan", packed, "--memory-budget", "2GiB").stdout

    @pytest.mark.parametrize(
        ("options", "kind"),
        [
            (("--memory-budget", "100MB"), "BudgetInfeasible"),
            (("--memory-budget", "lots"), "InvalidRequest"),
            (("--memory-budget", "2GiB", "--device", "tpu"), "InvalidRequest"),
            (("--memory-budget", "2GiB", "--kv-tokens", "0"), "InvalidRequest"),
        ],
    )
    def test_what_cannot_be_is_refused(self, options: tuple[str, ...], kind: str, packed: Path) -> None:
        ran = zipmoe("plan", packed, *options, "--json")
        assert (ran.exit_code, ran.error["class"]) == (2, kind)
