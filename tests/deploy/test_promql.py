from __future__ import annotations

from tests.deploy.promql import names_of


def test_metrics_labels_and_groupings_are_told_apart() -> None:
    names = names_of(
        'histogram_quantile(0.9, sum by (le, job) (rate(a_seconds_bucket{job=~"x|y", part!="z{"}[5m]))) > bool 1e3'
        " and on (arena) b_total unless ignoring(state) c:d offset 5m or time() - e"
    )
    assert names.metrics == {"a_seconds_bucket", "b_total", "c:d", "e"}
    assert names.matched == {("a_seconds_bucket", "job"), ("a_seconds_bucket", "part")}
    assert names.grouped == {"le", "job", "arena", "state"}
