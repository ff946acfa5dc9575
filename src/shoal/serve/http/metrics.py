"""What a server counts, for Prometheus: requests, tokens, times, the queue and the slots."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from shoal.serve.http.encoding import Encoding
from shoal.serve.http.served import Served

FAST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SLOW = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """The figures of one server, in a registry of its own; `/metrics` tells them."""

    def __init__(self, served: Served, encoding: Encoding) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("shoal_requests", "Requests answered.", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "shoal_request_seconds", "From a request to the end of its answer.", ["path"], registry=registry, buckets=SLOW
        )
        self.open = Gauge("shoal_requests_open", "Requests being answered.", registry=registry)
        self.prompt_tokens = Counter("shoal_prompt_tokens", "Tokens of prompts and inputs.", registry=registry)
        self.reused_tokens = Counter(
            "shoal_reused_tokens", "Tokens of prompts that had been computed for another request.", registry=registry
        )
        self.written_tokens = Counter("shoal_written_tokens", "Tokens written.", registry=registry)
        self.first_token = Histogram(
            "shoal_first_token_seconds", "From a request to the first token of its answer.", registry=registry, buckets=FAST
        )
        running = Gauge("shoal_running", "Texts that hold a slot, or requests that an encoder works for.", registry=registry)
        waiting = Gauge("shoal_waiting", "Texts, or requests, that wait for one.", registry=registry)
        slots = Gauge("shoal_slots", "Texts that can be written at once.", registry=registry)
        if served.writer is not None:
            engine = served.writer.engine
            running.set_function(lambda: engine.running)
            waiting.set_function(lambda: engine.waiting)
            slots.set(served.writer.slots)
        else:
            running.set_function(lambda: min(1, encoding.inside))
            waiting.set_function(lambda: max(0, encoding.inside - 1))
            slots.set(1)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
