"""What a server says over HTTP: its probes, and the figures of /metrics."""

from __future__ import annotations

import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families


def get(url, context=None):
    """Status and text of a URL."""
    try:
        with urllib.request.urlopen(url, timeout=10, context=context) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class Scrape:
    """The figures of one look at /metrics."""

    def __init__(self, http_address, context=None):
        status, text = get(f"{http_address}/metrics", context)
        assert status == 200
        self.samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        self.names = {sample.name for sample in self.samples}

    def __call__(self, name, **labels):
        """The sum over all series with these labels."""
        return sum(
            sample.value for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()
        )
