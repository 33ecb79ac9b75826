"""Every error of ours has its HTTP status."""

from __future__ import annotations

import pytest

from zipmoe import errors
from zipmoe.errors import ResourceExhausted, ZipMoeError
from zipmoe.rpc.status import STATUS_OF
from zipmoe.services.gateway.http_problem import HTTP_STATUS_OF, HttpProblem, problem_of


def test_every_class_that_travels_over_grpc_has_a_status() -> None:
    assert HTTP_STATUS_OF.keys() == STATUS_OF.keys()


@pytest.mark.parametrize("kind", HTTP_STATUS_OF, ids=lambda kind: kind.__name__)
def test_a_problem_has_all_that_clients_read(kind: type[ZipMoeError]) -> None:
    problem = problem_of(kind("it went wrong"))
    body = problem.body()["error"]
    assert body.keys() == {"message", "type", "param", "code"}
    assert body["message"].lower().startswith("it went wrong")
    assert 400 <= problem.status < 600
    assert (problem.retry_after_s is not None) == (problem.status in (429, 503))


def test_a_class_that_is_not_in_the_table_counts_as_its_base() -> None:
    class Fuller(ResourceExhausted):
        """Not in the table."""

    problem = problem_of(Fuller("full", retry_after_s=0.2))
    assert (problem.status, problem.code) == (429, "fuller")
    assert problem.all_headers() == {"retry-after": "1", "retry-after-ms": "200"}


def test_codes_are_the_names_of_classes() -> None:
    assert problem_of(errors.CorruptData("x")).code == "corrupt_data"
    assert HttpProblem(400, "x").body()["error"]["code"] is None
