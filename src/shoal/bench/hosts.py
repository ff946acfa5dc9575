"""Several hosts on this one machine, with a link of limited bandwidth each: Linux network namespaces on a bridge.

Each has one interface, `eth0`, with an address of its own, and counts what it sends. Names carry the process's number, so
that several sets can stand side by side. Needs root and iproute2. The kernel here may have no `netem`, so there is no delay.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

LEAST_BURST = 3_100
"""Bytes that may leave at once: two packets."""

BURST_SECONDS = 0.006
"""What a link sends in this time may leave at once, where that is more: at 100 Mbit/s, the largest frame that TCP makes. One
that fits leaves whole, as into a network card that cuts it by itself. Were it cut before, the kernel would set a timer for
each packet of 1,500 bytes, and ranks would compute that much slower (`bench/carrying.py`)."""

LARGEST_FRAME, HEADERS = 65_536, 66
"""Bytes that TCP hands over at most, and those that go before each packet's."""

CONGESTION = "/proc/sys/net/ipv4/tcp_congestion_control"
"""How TCP finds out how fast to send; each namespace has its own."""

_sets = count()


@dataclass(frozen=True)
class Host:
    """A namespace by its name, and the address of its interface."""

    name: str
    address: str

    def command(self, words: list[str]) -> list[str]:
        """Words that run `words` on this host."""
        return ["ip", "netns", "exec", self.name, *words]

    def bytes_sent(self) -> int:
        """What its interface has sent, headers included."""
        return int(_run(*self.command(["cat", "/sys/class/net/eth0/statistics/tx_bytes"])))


def reason_against() -> str | None:
    """Why hosts can't be made here; None when they can."""
    if not Path("/proc/self/ns/net").exists():
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"no {' and '.join(missing)}: install iproute2"
    probe = f"shoal{os.getpid()}probe"
    try:
        _run("ip", "netns", "add", probe)
        _run("ip", "netns", "del", probe)
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {error.stderr.strip()}"
    return None


@contextmanager
def hosts(number: int, megabits: float = 0.0) -> Iterator[list[Host]]:
    """So many hosts whose interfaces send at most `megabits` millions of bits a second (0: as fast as they can)."""
    tag = f"{os.getpid()}x{next(_sets)}"
    bridge = f"sb{tag}"
    made = [Host(f"shoal{tag}h{index}", f"10.77.0.{index + 1}") for index in range(number)]
    try:
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "link", "set", bridge, "up")
        for index, host in enumerate(made):
            _make(host, bridge, f"sv{tag}h{index}", megabits)
        yield made
    finally:
        for host in made:  # the kernel removes a namespace's interfaces with it
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", bridge], capture_output=True, check=False)


def _make(host: Host, bridge: str, port: str, megabits: float) -> None:
    _run("ip", "netns", "add", host.name)
    _run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
    _run("ip", "link", "set", port, "master", bridge, "up")
    _run("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
    for interface in ("eth0", "lo"):
        _run("ip", "-n", host.name, "link", "set", interface, "up")
    # What Linux comes with, so that machines can be compared: with BBR, four ranks on a narrow link were 9 and 19% slower
    # (docs/communication.md). It may not be for this process to say, or not be there.
    with suppress(subprocess.CalledProcessError):
        _run(*host.command(["sh", "-c", f"echo cubic > {CONGESTION}"]))
    if megabits:
        bits = round(megabits * 1e6)
        burst = max(LEAST_BURST, round(bits / 8 * BURST_SECONDS))
        packets = max(1, burst // (1_448 + HEADERS))
        _run("ip", "-n", host.name, "link", "set", "eth0", "gso_max_size", str(min(LARGEST_FRAME, 1_448 * packets)))
        shape = ["rate", f"{bits}bit", "burst", str(burst), "latency", "200ms"]
        _run(*host.command(["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *shape]))


def _run(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout
