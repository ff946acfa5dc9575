"""What is compared on a network: each a name, and the recipe's keys that make it."""

Keys = dict[str, object]

EVERY: Keys = {"parallel.sync": "every"}
LOCAL: Keys = {"parallel.sync": "local"}
INT4: Keys = {"parallel.codec.kind": "int4"}
SERVER: Keys = {"parallel.sync": "server", "parallel.server.shards": 2}
TWO_BIT: Keys = {"parallel.codec.kind": "two_bit"}


def streaming(every: int, fragments: int, overlap: int) -> Keys:
    """Parts of the model that each travel so many steps, one after the other."""
    return {"parallel.local.every": every, "parallel.local.fragments": fragments, "parallel.local.overlap": overlap}


def sgd(rate: float) -> Keys:
    """The outer optimizer."""
    return {"parallel.local.outer": "sgd", "parallel.local.learning_rate": rate}


def nesterov(rate: float, momentum: float) -> Keys:
    """The outer optimizer."""
    return {
        "parallel.local.outer": "nesterov",
        "parallel.local.learning_rate": rate,
        "parallel.local.momentum": momentum,
    }


METHODS: dict[str, Keys] = {
    "fp32": EVERY,
    "bf16": {**EVERY, "parallel.codec.kind": "bf16"},
    "int8": {**EVERY, "parallel.codec.kind": "int8"},
    "int4": {**EVERY, **INT4},
    "two bits": {**EVERY, **TWO_BIT},
    "sign": {**EVERY, "parallel.codec.kind": "sign"},
    "topk": {**EVERY, "parallel.codec.kind": "topk"},
    "powersgd": {**EVERY, "parallel.codec.kind": "powersgd"},
    "1-bit Adam": {
        **EVERY,
        "parallel.codec.kind": "sign",
        "optimizer.kind": "onebit_adam",
        "optimizer.onebit_warmup": 1,
    },
    "local, H 15": {**LOCAL, "parallel.local.every": 15},
    "streaming, H 4, int4": {**LOCAL, **INT4, **streaming(4, 2, 1)},
    "streaming, H 4, int4, outer 1.2": {**LOCAL, **INT4, **streaming(4, 2, 1), **sgd(1.2)},
    "streaming, H 4, int4, outer 1.6": {**LOCAL, **INT4, **streaming(4, 2, 1), **sgd(1.6)},
    "streaming, H 8, int4": {**LOCAL, **INT4, **streaming(8, 4, 1)},
    "streaming, H 14, two bits": {**LOCAL, **TWO_BIT, **streaming(14, 7, 2), **nesterov(0.9, 0.3)},
    "streaming, H 14, two bits, mean": {**LOCAL, **TWO_BIT, **streaming(14, 7, 2)},
    "streaming, H 32, int4": {**LOCAL, **INT4, **streaming(32, 8, 4)},
    "server": SERVER,
    "server, int8": {**SERVER, "parallel.codec.kind": "int8"},
    "auto": {"parallel.sync": "auto"},
}

PEERS: dict[str, list[str]] = {
    "torch DDP": ["ddp.py"],
    "torch DDP, PowerSGD": ["ddp.py", "--power-sgd"],
    "torchft DiLoCo": ["diloco.py"],
}
"""Scripts of bench/peers, plain loops under what others offer, with options."""

ROUNDS = {"torchft DiLoCo": 8}
"""Peers that meet every so many steps; they live in the environment that bench/setup_peers.sh makes."""

QUICK = ("fp32", "int8", "streaming, H 8, int4", "auto")
"""What `--quick` measures."""

PLAIN_SHARE = 0.15
"""Of the steps, in which 1-bit Adam's variance settles where a model is trained to the end (DeepSpeed advises 15 to 25%)."""


def is_served(keys: Keys) -> bool:
    """Whether workers push to, and pull from, servers."""
    return keys.get("parallel.sync") == "server"


def to_the_end(keys: Keys, steps: int) -> Keys:
    """A method's keys where a run of so many steps is about its loss: as they are, but for 1-bit Adam's plain steps."""
    if "optimizer.onebit_warmup" not in keys:
        return keys
    return {**keys, "optimizer.onebit_warmup": max(1, round(PLAIN_SHARE * steps))}
