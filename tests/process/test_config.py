"""Where a setting comes from, and what a person reads who got one wrong."""

import os
import stat
from pathlib import Path

import pytest
from pydantic import ByteSize, Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from zipmoe.errors import InvalidRequest
from zipmoe.process.config import ServiceConfig, load_config, parse_config


class ThingsConfig(ServiceConfig):
    """Serves things.

    More that is not for the help text.
    """

    model_config = SettingsConfigDict(cli_prog_name="zipmoe things")

    store: Path = Field(..., description="directory of the packed store")
    chunk_arena: ByteSize = Field("1GiB", description="size of the chunk arena")
    io_threads: int = Field(4, ge=1, description="threads that read")
    lock: bool = Field(True, description="whether to lock the arena into memory")
    token: SecretStr | None = Field(None, min_length=8, description="what clients have to show")
    peer: list[str] = Field([], description="others; may be repeated")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("ZIPMOE_")]:
        monkeypatch.delenv(name)


def parse(*arguments):
    return parse_config(ThingsConfig, ["--store", "s", *arguments])


def problems(*arguments, store=("--store", "s")):
    with pytest.raises(InvalidRequest) as caught:
        parse_config(ThingsConfig, [*store, *arguments])
    headline, *lines = caught.value.message.split("\n  ")
    plural = "" if len(lines) == 1 else "s"
    assert headline == f"{len(lines)} problem{plural} in the configuration"
    assert caught.value.diagnostics() == "see zipmoe things --help"
    return lines


class TestLists:
    def test_are_repeated_flags_or_json_in_a_variable(self, monkeypatch):
        assert parse("--peer=a", "--peer=b").peer == ["a", "b"]
        monkeypatch.setenv("ZIPMOE_PEER", '["c"]')
        assert parse().peer == ["c"]

    def test_that_are_not_json_are_a_problem_that_names_the_field(self, monkeypatch):
        monkeypatch.setenv("ZIPMOE_PEER", "c")
        (problem,) = problems()
        assert '"peer"' in problem and 'a list is JSON, such as ["a", "b"]' in problem


class TestPrecedence:
    def test_is_flag_then_environment_then_file_then_default(self, tmp_path, monkeypatch):
        path = tmp_path / "things.toml"
        path.write_text('io_threads = 2\nlog_level = "error"\nchunk_arena = "3MiB"\nlock = false\n')
        monkeypatch.setenv("ZIPMOE_IO_THREADS", "3")
        monkeypatch.setenv("ZIPMOE_LOG_LEVEL", "debug")
        config = parse("--config", str(path), "--io-threads", "5")
        assert (config.io_threads, config.log_level, config.chunk_arena, config.log_format, config.lock) == (
            5,
            "debug",
            3 << 20,
            "logfmt",
            False,
        )

    def test_of_a_file_named_by_the_environment_is_the_same(self, tmp_path, monkeypatch):
        path = tmp_path / "things.toml"
        path.write_text("io_threads = 2\n")
        monkeypatch.setenv("ZIPMOE_CONFIG", str(path))
        assert parse().io_threads == 2

    def test_an_empty_variable_counts_as_unset(self, monkeypatch):
        monkeypatch.setenv("ZIPMOE_IO_THREADS", "")
        assert parse().io_threads == 4


@pytest.mark.parametrize(
    ("text", "nbytes"), [("1.5GiB", 3 << 29), ("512MB", 512_000_000), ("4096", 4096), ("1 KiB", 1024)]
)
def test_sizes_have_units(text, nbytes):
    assert parse("--chunk-arena", text).chunk_arena == nbytes


@pytest.mark.parametrize(("flags", "lock"), [((), True), (("--lock",), True), (("--no-lock",), False)])
def test_a_boolean_is_a_pair_of_flags(flags, lock):
    assert parse(*flags).lock is lock


def test_a_flag_may_have_an_equals_sign():
    assert parse("--io-threads=7").io_threads == 7


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError):
        parse().io_threads = 5


class TestProblems:
    def test_are_all_in_one_message_each_under_the_name_that_the_user_wrote(self, tmp_path, monkeypatch):
        path = tmp_path / "things.toml"
        path.write_text("metrics_port = 70000\nwrong_key = 1\n[decoder]\nworkers = 1\n")
        monkeypatch.setenv("ZIPMOE_LOG_FORMAT", "xml")
        found = problems("--io-threads", "0", "--chunk-arena", "big", "--config", str(path), store=())
        assert sorted(found) == sorted(
            [
                f"{path}: decoder: unknown setting",
                f"{path}: metrics_port: input should be less than or equal to 65535, not 70000",
                f"{path}: wrong_key: unknown setting",
                "--chunk-arena: could not parse value and unit from byte string, not 'big'",
                "--io-threads: input should be greater than or equal to 1, not '0'",
                "--store: required",
                "ZIPMOE_LOG_FORMAT: input should be 'logfmt' or 'json', not 'xml'",
            ]
        )

    def test_an_unknown_flag_comes_with_the_likely_one(self):
        assert problems("--io-thread", "3", "--verbose", "--metrics-prot=1") == [
            "--io-thread: unknown flag, did you mean --io-threads",
            "--verbose: unknown flag",
            "--metrics-prot: unknown flag, did you mean --metrics-port",
        ]

    def test_a_stray_argument_is_unexpected(self):
        assert problems("serve") == ["serve: unexpected argument"]

    def test_a_flag_without_its_value_is_named(self):
        assert problems("--io-threads") == ["argument --io-threads: expected one argument"]

    def test_a_flag_cannot_be_abbreviated(self):
        assert problems("--io", "3") == ["--io: unknown flag"]

    def test_a_secret_is_not_repeated(self):
        (problem,) = problems("--token", "hunter2")
        assert problem.startswith("--token: ")
        assert "hunter2" not in problem

    @pytest.mark.parametrize(
        ("content", "text"),
        [(b"io_threads = = 3", "not a TOML file"), (b"\xff\xfe", "not a TOML file"), (None, "no such file")],
    )
    def test_a_file_that_cannot_be_read_is_named(self, tmp_path, content, text):
        path = tmp_path / "things.toml"
        if content is not None:
            path.write_bytes(content)
        (problem,) = problems("--config", str(path))
        assert problem.startswith(f"{path}: {text}")

    def test_end_the_process_with_status_2_and_no_traceback(self, capsys):
        with pytest.raises(SystemExit) as caught:
            load_config(ThingsConfig, ["--io-threads", "x", "--nope"])
        assert caught.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: 3 problems in the configuration\n  ")
        assert captured.err.endswith("next step: see zipmoe things --help\n")
        assert "Traceback" not in captured.err


def test_help_describes_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        load_config(ThingsConfig, ["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: zipmoe things [-h]")
    assert "Serves things." in text
    assert "not for the help text" not in text
    for name, field in ThingsConfig.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description in text
    for part in ("(default: 1GiB)", "(required)", "--lock, --no-lock", "{debug,info,warning,error}"):
        assert part in text


def test_the_resolved_configuration_is_complete_and_hides_secrets():
    resolved = parse("--token", "correct horse").resolved()
    assert resolved["chunk_arena"] == 1 << 30
    assert resolved["store"] == "s"
    assert resolved["log_level"] == "info"
    assert "correct" not in str(resolved)


def test_the_sockets_are_in_the_run_directory_which_is_made(tmp_path):
    sockets = parse("--runtime-dir", str(tmp_path / "run")).sockets()
    assert sockets.router == tmp_path / "run" / "router.sock"
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
