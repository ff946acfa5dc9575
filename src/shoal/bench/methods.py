"""What is compared on a network: each a name, and the recipe's keys that make it."""

Keys = dict[str, object]

EVERY: Keys = {"parallel.sync": "every"}
LOCAL: Keys = {"parallel.sync": "local"}
INT4: Keys = {"parallel.codec.kind": "int4"}
STREAMING: Keys = {"parallel.local.fragments": 3, "parallel.local.overlap": 1, "parallel.local.mix": 0.5}

METHODS: dict[str, Keys] = {
    "fp32": EVERY,
    "bf16": {**EVERY, "parallel.codec.kind": "bf16"},
    "int8": {**EVERY, "parallel.codec.kind": "int8"},
    "int4": {**EVERY, **INT4},
    "topk": {**EVERY, "parallel.codec.kind": "topk"},
    "sign": {**EVERY, "parallel.codec.kind": "sign"},
    "powersgd": {**EVERY, "parallel.codec.kind": "powersgd"},
    "local, H 15": {**LOCAL, "parallel.local.every": 15},
    "local, H 15, int4": {**LOCAL, **INT4, "parallel.local.every": 15},
    "streaming, H 15, int4": {**LOCAL, **INT4, **STREAMING, "parallel.local.every": 15},
    "streaming, H 30, topk": {**LOCAL, **STREAMING, "parallel.codec.kind": "topk", "parallel.local.every": 30},
    "auto": {"parallel.sync": "auto"},
}

PEERS: dict[str, list[str]] = {"torch DDP": [], "torch DDP, PowerSGD": ["--power-sgd"]}
"""Options of bench/peers/ddp.py, a plain loop under torch's DistributedDataParallel."""

QUICK = ("fp32", "int8", "streaming, H 15, int4", "auto")
"""What `--quick` measures."""
