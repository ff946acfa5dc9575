"""Training through parameter servers on places of a bench: Ray runs on each, as it would on the machines of a cluster."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec

from shoal.bench.places import Here, Place, RanksFailed, Running, wait_for

PORT = 29_600
"""Where the first place's Ray is joined."""
JOIN_SECONDS = 120
STORE_BYTES = 1 << 30
"""Of a place's object store."""

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # nobody else reaches these hosts; nodes and who joins must agree
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

COUNT = """
import sys, time, ray
ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    time.sleep(0.2)
"""


def run_served(where: Sequence[Place], words: list[str]) -> None:
    """Run `python WORDS --workers N` at the first of N places, and the other workers where Ray places them: one a place.

    `RanksFailed` with what it, or a Ray that didn't start, had to say.
    """
    if find_spec("ray") is None:
        raise RanksFailed("parameter servers need Ray: pip install 'shoal[cluster]' (or: pip install ray)")
    words = [*words, "--workers", str(len(where))]
    if where[0].address == Here().address:  # it starts a Ray by itself
        with Running(where[0], 0, [sys.executable, *words], {}) as main:
            wait_for([main])
        return
    with _ray(where) as address:
        told = {**ENVIRONMENT, "RAY_ADDRESS": address}
        with Running(where[0], 0, [sys.executable, *words], told) as main:
            wait_for([main])


@contextmanager
def _ray(where: Sequence[Place]) -> Iterator[str]:
    """Ray on every place, on a core each; the address at which it is joined.

    The first place has room for nobody's workers: that of the process which the user starts is there already.
    """
    address = f"{where[0].address}:{PORT}"
    with ExitStack() as nodes:
        folder = nodes.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))
        head = ["--head", "--port", str(PORT), "--num-cpus", "0", "--include-dashboard", "false", "--temp-dir", folder]
        for index, place in enumerate(where):
            role = ["--address", address, "--num-cpus", "1"] if index else head
            size = ["--object-store-memory", str(STORE_BYTES)]
            words = ["-m", "ray.scripts.scripts", "start", "--node-ip-address", place.address, *role, *size, "--block"]
            node = nodes.enter_context(Running(place, index, [sys.executable, *words], ENVIRONMENT))
            _wait_joined(where[0], address, index + 1, node)
        yield address


def _wait_joined(place: Place, address: str, number: int, node: Running) -> None:
    """Until so many nodes are there; the last may fail meanwhile."""
    ends = time.monotonic() + JOIN_SECONDS
    while time.monotonic() < ends:
        counted = subprocess.run(
            place.command([sys.executable, "-c", COUNT, address, str(number)]),
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            check=False,
            timeout=JOIN_SECONDS,
        )
        if counted.returncode == 0:
            return
        if node.process.poll() is not None:
            break
    raise RanksFailed(f"Ray did not start at {place.address}:\n{node.said()}")
