"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "resnetlab_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "resnetlab_request_seconds",
            "From a request's head to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.images = Counter("resnetlab_images", "Images that were classified.", registry=self.registry)
        self.unusable = Counter("resnetlab_unusable_images", "Images that could not be used.", registry=self.registry)
        self.batch_images = Histogram(
            "resnetlab_batch_images", "Images of a batch.", buckets=IMAGES, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "resnetlab_batch_seconds", "Computation of a batch.", buckets=SECONDS, registry=self.registry
        )
        gauge = Gauge("resnetlab_waiting_images", "Images that wait for the network.", registry=self.registry)
        gauge.set_function(waiting)

    def batch(self, images: int, seconds: float) -> None:
        self.batch_images.observe(images)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self.registry)
