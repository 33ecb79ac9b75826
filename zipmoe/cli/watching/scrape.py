"""Reads the Prometheus metrics of a service."""

from __future__ import annotations

import urllib.request
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from zipmoe.errors import Unavailable


class MetricSample(NamedTuple):
    """A sample of a metric."""

    name: str
    labels: dict[str, str]
    value: float


class Samples:
    """Samples of services at the same moment, by name of the sample."""

    def __init__(self, samples: Iterable[MetricSample] = ()) -> None:
        self._samples: dict[str, list[MetricSample]] = defaultdict(list)
        for sample in samples:
            self._samples[sample.name].append(sample)

    def total(self, name: str, **labels: str) -> float:
        """Sums the samples of a name that have the given labels; 0 if there is none."""
        found = (sample for sample in self._samples.get(name, ()) if labels.items() <= sample.labels.items())
        return sum(sample.value for sample in found)

    def of(self, name: str) -> list[MetricSample]:
        """Returns all samples of a name."""
        return self._samples.get(name, [])

    def totals(self) -> dict[str, float]:
        """Sums the samples of each name over all labels."""
        return {name: self.total(name) for name in self._samples}


def read_samples(port: int, host: str = "127.0.0.1", timeout_s: float = 10.0) -> list[MetricSample]:
    """Reads all samples of a service except the buckets of histograms.

    Raises:
        Unavailable: the service does not answer.
    """
    from prometheus_client.parser import text_string_to_metric_families

    # The proxies of the environment are for the web, not for metrics of this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{host}:{port}/metrics", timeout=timeout_s) as response:
            text = response.read().decode()
    except OSError as error:
        raise Unavailable(f"no metrics at {host}:{port}: {error}") from error
    return [
        MetricSample(sample.name, sample.labels, sample.value)
        for metric in text_string_to_metric_families(text)
        for sample in metric.samples
        if not sample.name.endswith("_bucket")
    ]


def scrape(port: int) -> dict[str, float]:
    """Reads the samples of a service of this machine and sums them over all labels.

    Returns:
        Values by sample name, for example `zipmoe_expert_misses_total`; histograms as their `_sum` and `_count`.

    Raises:
        Unavailable: the service does not answer.
    """
    return Samples(read_samples(port)).totals()
