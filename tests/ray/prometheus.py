"""The metrics of the test's one node, as Prometheus would read them."""

from __future__ import annotations

import re

import httpx
import ray

__all__ = ["Scrape", "exposed_names", "metric", "scrape"]

_SAMPLE = re.compile(r"^ray_(\w+?)(?:_total)?\{(.*)\} (\S+)$", flags=re.MULTILINE)


class Scrape:
    """All samples of one moment."""

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[tuple[str, float]]] = {}
        for name, labels, value in _SAMPLE.findall(text):
            self._samples.setdefault(name, []).append((labels, float(value)))

    def values(self, name: str, **labels: str) -> list[float]:
        """The samples of a metric (without `ray_` and `_total`) with these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return [
            value
            for found, value in self._samples.get(name, [])
            if all(label in found for label in wanted)
        ]

    def total(self, name: str, **labels: str) -> float:
        """Their sum."""
        return sum(self.values(name, **labels))


def scrape() -> Scrape:
    """Read the node's endpoint now."""
    return Scrape(_read())


def exposed_names() -> set[str]:
    """The full names of the metrics that the node offers now."""
    return set(re.findall(r"^# TYPE (\S+) ", _read(), flags=re.MULTILINE))


def _read() -> str:
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
    return httpx.get(address, timeout=30).text


def metric(name: str, **labels: str) -> float:
    """The sum of the samples of one metric now."""
    return scrape().total(name, **labels)
