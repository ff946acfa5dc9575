"""torchft's Streaming DiLoCo: the plain loop's model, a replica group a rank, over gloo in fp32.

A rank of several, started with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; alone, the same loop without it. Rank 0 runs
the lighthouse, by which replicas find each other, at the port after. Two fragments meet every 8 steps, each with 3 steps to
travel, the most that it takes; outer Nesterov 0.9 with 0.7, as in its own example. It quantises on GPUs only.
"""

import json
import os
import socket
from datetime import timedelta

import torch
from ddp import steps
from harness import Settings
from plain_loop import GPT, build_model, build_optimizer
from torch import distributed, nn
from torchft import Manager, ProcessGroupGloo
from torchft.coordination import LighthouseServer
from torchft.local_sgd import DiLoCo

EVERY, DELAY = 8, 3
LONG = timedelta(hours=1)


def my_address(main: str, port: int) -> str:
    """As the main rank's host sees it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((main, port))
        return str(probe.getsockname()[0])


def fragments_of(model: GPT) -> list[nn.Module]:
    """Two halves of about equal size; the output projection is the token embedding."""
    middle = len(model.blocks) // 3
    first = [model.token_embedding, model.position_embedding, *model.blocks[:middle]]
    return [nn.ModuleList(first), nn.ModuleList([*model.blocks[middle:], model.final_norm])]


def main() -> None:
    settings = Settings.from_command_line(__doc__)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    model = build_model(settings)
    optimizer = build_optimizer(model, settings.learning_rate)
    inside = None
    if world_size > 1:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        mine = my_address(host, port)
        socket.gethostname = lambda: mine  # by which its process groups tell others where they are
        meeting = distributed.TCPStore(host, port, world_size, rank == 0, LONG)
        lighthouse = LighthouseServer(bind=f"0.0.0.0:{port + 1}", min_replicas=world_size) if rank == 0 else None
        store = distributed.TCPStore(mine, 0, 1, True, LONG, wait_for_workers=False)
        meeting.set(f"ready {rank}", "")
        meeting.wait([f"ready {other}" for other in range(world_size)], LONG)
        manager = Manager(
            pg=ProcessGroupGloo(timeout=LONG), load_state_dict=lambda _: None, state_dict=lambda: None,
            min_replica_size=world_size, use_async_quorum=False, timeout=LONG, quorum_timeout=LONG, rank=0, world_size=1,
            store_addr=mine, store_port=store.port, lighthouse_addr=f"http://{host}:{port + 1}",
            replica_id=f"replica-{rank}", hostname=mine, init_sync=False,
        )  # fmt: skip
        parts = fragments_of(model)
        outer = [torch.optim.SGD(part.parameters(), lr=0.7, momentum=0.9, nesterov=True) for part in parts]
        inside = DiLoCo(manager, parts, optimizer, outer, EVERY, fragment_sync_delay=DELAY)
        inside.__enter__()
    result = steps(settings, model, optimizer, rank, world_size)
    if inside is not None:
        result["meetings"] = manager.current_step()
        meeting.set(f"over {rank}", "")
        meeting.wait([f"over {other}" for other in range(world_size)], LONG)
        manager.shutdown(wait=False)
        if rank:
            meeting.set(f"left {rank}", "")
        else:  # it holds the store and the lighthouse, which others may still ask
            meeting.wait([f"left {other}" for other in range(1, world_size)], LONG)
        if lighthouse is not None:
            lighthouse.shutdown()
    print(json.dumps(result), flush=True)
    os._exit(0)  # its threads wait for others that are gone


if __name__ == "__main__":
    main()
