"""Reads the Prometheus metrics of a service."""

from __future__ import annotations

import urllib.request
from collections import defaultdict

from zipmoe.errors import Unavailable


def scrape(port: int, host: str = "127.0.0.1") -> dict[str, float]:
    """Reads all samples of one service, summed over their labels.

    Returns:
        Values by sample name, for example `zipmoe_expert_misses_total`; histograms as their `_sum` and `_count`.

    Raises:
        Unavailable: nobody answers.
    """
    from prometheus_client.parser import text_string_to_metric_families

    # The metrics are on this machine: a proxy for the web is never meant.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{host}:{port}/metrics", timeout=10) as response:
            text = response.read().decode()
    except OSError as error:
        raise Unavailable(f"no metrics at {host}:{port}: {error}") from error
    totals: dict[str, float] = defaultdict(float)
    for metric in text_string_to_metric_families(text):
        for sample in metric.samples:
            if not sample.name.endswith("_bucket"):
                totals[sample.name] += sample.value
    return dict(totals)
