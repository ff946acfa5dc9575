"""Training through parameter servers on places of a bench: Ray runs on each, as it would on the machines of a cluster."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from shoal.bench.places import Here, Place, RanksFailed, Running, wait_for

PORT = 29_600
"""Where the first place's Ray is joined."""
JOIN_SECONDS = 120.0
STOP_SECONDS = 30.0
STORE_BYTES = 1 << 30
"""Of a place's object store."""

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # nobody else reaches these hosts; nodes and who joins must agree
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

JOINED = """
import sys, time, ray
ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    time.sleep(0.2)
"""


def run_served(where: Sequence[Place], words: list[str]) -> None:
    """Run `python WORDS --workers N` at the first of N places, and the other workers where Ray places them: one a place.

    `RanksFailed` with what it, or a Ray that didn't start or did not last, had to say.
    """
    words = [sys.executable, *words, "--workers", str(len(where))]
    if where[0].address == Here().address:  # it starts a Ray by itself, whose processes have its cores
        with Running(where[0], None, words, {"RAY_ADDRESS": "local"}, STOP_SECONDS) as main:
            wait_for([main])
        return
    address = f"{where[0].address}:{PORT}"
    told = {**ENVIRONMENT, "RAY_ADDRESS": address}
    with _ray(where, address) as nodes, Running(where[0], 0, words, told, STOP_SECONDS) as main:
        wait_for([main], beside=nodes)


@contextmanager
def _ray(where: Sequence[Place], address: str) -> Iterator[list[Running]]:
    """Ray's node on every place, on a core each, all joined at the address.

    The first place has room for nobody's worker: that of the process which the user starts is there already.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))
        head = ["--head", "--port", str(PORT), "--num-cpus", "0", "--include-dashboard", "false", "--temp-dir", folder]
        nodes: list[Running] = []
        for index, place in enumerate(where):
            role = ["--address", address, "--num-cpus", "1"] if index else head
            size = ["--object-store-memory", str(STORE_BYTES)]
            words = ["-m", "ray.scripts.scripts", "start", "--node-ip-address", place.address, *role, *size, "--block"]
            nodes.append(stack.enter_context(Running(place, index, [sys.executable, *words], ENVIRONMENT, STOP_SECONDS)))
            _wait_joined(where[0], address, nodes)
        yield nodes


def _wait_joined(place: Place, address: str, nodes: list[Running]) -> None:
    """Until all of them are there."""
    joining = [sys.executable, "-c", JOINED, address, str(len(nodes))]
    try:
        with Running(place, None, joining, ENVIRONMENT) as joined:
            wait_for([joined], nodes, JOIN_SECONDS)
    except RanksFailed as error:
        raise RanksFailed(f"Ray did not start at place {len(nodes) - 1}: {error}") from None
