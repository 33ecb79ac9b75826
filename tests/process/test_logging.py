"""One event is one line, whoever logs it and whatever is in it."""

import io
import json
import logging

import pytest
import structlog

from zipmoe.process.logging import configure


@pytest.fixture
def log():
    """Configures as a service does, puts everything back afterwards, and returns the lines written so far."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    stream = io.StringIO()

    def begin(**options):
        configure("decoder", stream=stream, **options)
        return stream

    yield begin
    root.handlers[:], root.level = before
    structlog.reset_defaults()


def lines(stream):
    assert stream.getvalue().endswith("\n")
    return stream.getvalue().splitlines()


def test_logfmt_begins_with_time_level_service_and_event(log):
    stream = log()
    structlog.get_logger().info("arena ready", slots=4, locked=True, reason="a b")
    (line,) = lines(stream)
    assert line.startswith("timestamp=20")
    assert line.endswith(' level=info service=decoder event="arena ready" slots=4 locked=true reason="a b"')


def test_json_has_the_same_fields(log):
    stream = log(format="json")
    structlog.get_logger().warning("arena not locked", slots=4)
    (line,) = lines(stream)
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {"level": "warning", "service": "decoder", "event": "arena not locked", "slots": 4}


@pytest.mark.parametrize("format_name", ["logfmt", "json"])
def test_the_standard_library_goes_the_same_way_with_its_extra_fields(log, format_name):
    stream = log(format=format_name)
    logging.getLogger("zipmoe.arena.broker").warning("arena refused to %s", "user 7", extra={"peer_pid": 12})
    (line,) = lines(stream)
    assert "arena refused to user 7" in line
    assert "peer_pid" in line
    assert "decoder" in line


@pytest.mark.parametrize("format_name", ["logfmt", "json"])
@pytest.mark.parametrize("source", ["structlog", "stdlib"])
def test_a_traceback_stays_on_one_line_and_is_complete(log, format_name, source):
    stream = log(format=format_name)
    try:
        raise KeyError("the reason")
    except KeyError:
        logger = structlog.get_logger() if source == "structlog" else logging.getLogger("x")
        logger.exception("rpc failed")
    (line,) = lines(stream)
    assert "test_a_traceback_stays_on_one_line" in line
    assert "the reason" in line


@pytest.mark.parametrize("format_name", ["logfmt", "json"])
def test_a_newline_in_a_value_cannot_forge_an_event(log, format_name):
    stream = log(format=format_name)
    structlog.get_logger().info("request", id='x\nlevel=error event="forged"\r\n\x1b[2J\x85\u2028')
    logging.getLogger("x").info("request x\nlevel=error")
    assert len(lines(stream)) == 2
    assert not set(stream.getvalue()) & set("\r\x1b\x85\u2028")


def test_less_important_events_are_dropped(log):
    stream = log(level="warning")
    structlog.get_logger().info("quiet")
    logging.getLogger("x").info("quiet")
    assert stream.getvalue() == ""
    structlog.get_logger().error("loud")
    assert len(lines(stream)) == 1


def test_configuring_twice_does_not_write_twice(log):
    log()
    stream = log()
    structlog.get_logger().info("once")
    assert len(lines(stream)) == 1


def test_the_default_is_stderr(capsys, log):
    log()
    configure("decoder")
    structlog.get_logger().info("hello")
    assert capsys.readouterr().err.count("event=hello") == 1
