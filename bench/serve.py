"""How fast a server answers many at once, next to its engine alone and `transformers serve`; and what leaving clients cost.

Clients stream completions of one model, greedily, each its next as soon as the last has ended, over a connection that it
keeps, as OpenAI's own client does, but over plain sockets in one thread, so that they take little of the two cores
themselves. Tokens are those that servers report as used; the time to the first token is from sending a request to its first
event with text. The engine alone writes the same texts, as many at once, without HTTP.

    python bench/serve.py --model runs/demo
    python bench/serve.py --model runs/demo --disconnects 10000

With --disconnects nothing is compared: so many requests are begun and left, at once, in the queue, or in mid-stream, and the
server's slots and memory are looked at.
"""

import asyncio
import gc
import itertools
import json
import os
import random
import re
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from report import PEERS_PYTHON, ROOT, Result, Rounds, median, progress, publish, shoal_command, shown, take_turns

COLUMNS = ["", "tokens/s", "lowest–highest", "of the engine", "first token, p50", "p99"]
SHOAL, ENGINE = "shoal serve", "the engine alone"
PEERS = {"transformers serve": (), "transformers serve, continuous batching": ("--continuous-batching",)}
PROMPT_BYTES = 200
LAST_CHUNK = b"\r\n0\r\n\r\n"
"""How an answer ends whose length was not said before."""


@dataclass(frozen=True)
class Arguments:
    model: Path
    """A decoder's folder, or a run's."""
    clients: int = 16
    requests: int = 8
    """Of each client, one after the other, after one that isn't counted."""
    tokens: int = 64
    """Of each answer."""
    threads: int = 2
    rounds: int = 3
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Contenders, by name; all by default."""
    disconnects: int = 0
    """So many clients that leave, instead of a comparison."""


def prompts(count: int) -> list[str]:
    """Different pieces of the documentation."""
    text = "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    step = len(text) // count
    return [text[number * step : number * step + PROMPT_BYTES] for number in range(count)]


def prompts_of(arguments: Arguments) -> Iterator[str]:
    """As many as a measurement asks for, none twice: what was read of one would be there for the other."""
    return iter(prompts(arguments.clients * (1 + arguments.requests)))


@dataclass(frozen=True)
class Server:
    port: int
    model: str
    process: "subprocess.Popen[str]"


@contextmanager
def started(command: Sequence[object], threads: int, model: str, port: int) -> Iterator[Server]:
    """A server, from when it answers; ended with the block."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    with subprocess.Popen(
        [str(word) for word in command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        tail: list[str] = []
        threading.Thread(target=lambda: tail.extend(process.stderr or ()), daemon=True).start()
        try:
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    if process.poll() is not None:
                        raise SystemExit(f"{command}\nended:\n{''.join(tail[-20:])}") from None
                    time.sleep(0.2)
            yield Server(port, model, process)
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def shoal_server(arguments: Arguments, slots: int) -> AbstractContextManager[Server]:
    port = free_port()
    words = ("serve", arguments.model, "--port", port, "--name", "model", "--slots", slots, "--queue", 256)
    return started(shoal_command(*words), arguments.threads, "model", port)


def transformers_server(arguments: Arguments, options: Sequence[str]) -> AbstractContextManager[Server]:
    port = free_port()
    folder = arguments.model / "model" if (arguments.model / "model").is_dir() else arguments.model
    model = str(folder.resolve())
    program = PEERS_PYTHON.with_name("transformers")
    command = (
        program,
        "serve",
        model,
        "--port",
        port,
        "--host",
        "127.0.0.1",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        *options,
    )
    return started(command, arguments.threads, model, port)


def request_bytes(server: Server, prompt: str, tokens: int, stream: bool = True) -> bytes:
    body = {"model": server.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": stream}
    if stream and server.model == "model":
        body["stream_options"] = {"include_usage": True}  # transformers always does
    content = json.dumps(body).encode()
    lines = ("POST /v1/completions HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json")
    return "\r\n".join((*lines, f"Content-Length: {len(content)}", "", "")).encode() + content


@dataclass(frozen=True)
class Answer:
    first_token_seconds: float
    tokens: int


class Client:
    """Who asks a server, one text after another."""

    def __init__(self, server: Server, tokens: int, texts: Iterator[str]) -> None:
        self.server, self.tokens, self.texts = server, tokens, texts
        self.connection = self._connect()
        self.answers: list[Answer] = []

    def ask(self) -> None:
        """Begin the next."""
        self.connection.sendall(request_bytes(self.server, next(self.texts), self.tokens))
        self.began, self.first, self.read = time.perf_counter(), 0.0, bytearray()

    def hear(self) -> bool:
        """What has come; whether that was the last of it."""
        part = self.connection.recv(1 << 16)
        self.read += part
        if not self.first and b'"text"' in part:
            self.first = time.perf_counter() - self.began
        if part and not self.read.endswith(LAST_CHUNK):
            return False
        used = re.findall(rb'"completion_tokens": ?(\d+)', self.read)
        if not used or not self.first:
            raise SystemExit(f"no stream of a text came, but:\n{self.read.decode()[:1000]}")
        self.answers.append(Answer(self.first, int(used[-1])))
        return True

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.server.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def answers(server: Server, clients: int, requests: int, tokens: int, texts: Iterator[str]) -> list[Answer]:
    """Of all clients at once, each asking so many times."""
    everyone = [Client(server, tokens, texts) for _ in range(clients)]
    with selectors.DefaultSelector() as selector:
        for client in everyone:
            selector.register(client.connection, selectors.EVENT_READ, client)
            client.ask()
        while selector.get_map():
            for key, _ in selector.select():
                if key.data.hear():
                    if len(key.data.answers) < requests:
                        key.data.ask()
                    else:
                        selector.unregister(key.fileobj)
                        key.data.connection.close()
    return [answer for client in everyone for answer in client.answers]


def measured(server: Server, arguments: Arguments) -> Result:
    texts = prompts_of(arguments)
    answers(server, arguments.clients, 1, arguments.tokens, texts)
    began = time.perf_counter()
    found = answers(server, arguments.clients, arguments.requests, arguments.tokens, texts)
    seconds = time.perf_counter() - began
    first = [answer.first_token_seconds for answer in found]
    tokens = sum(answer.tokens for answer in found)
    cuts = statistics.quantiles(first, n=100)
    return {
        "tokens_per_second": tokens / seconds,
        "tokens": tokens,
        "seconds": seconds,
        "first_token_p50": cuts[49],
        "first_token_p99": cuts[98],
    }


def contenders(arguments: Arguments) -> dict[str, Callable[[int], Result]]:
    def shoal(_: int) -> Result:
        with shoal_server(arguments, arguments.clients) as server:
            return measured(server, arguments)

    def peer(options: Sequence[str]) -> Callable[[int], Result]:
        def measure(_: int) -> Result:
            with transformers_server(arguments, options) as server:
                return measured(server, arguments)

        return measure

    everyone: dict[str, Callable[[int], Result]] = {SHOAL: shoal, ENGINE: lambda _: engine_alone(arguments)}
    everyone |= {name: peer(options) for name, options in PEERS.items()}
    return {name: measure for name, measure in everyone.items() if not arguments.only or name in arguments.only}


def engine_alone(arguments: Arguments) -> Result:
    """The same texts, as many at once, in this process, whose settings are the server's."""
    import torch

    from shoal.serve.engine import make_engine
    from shoal.serve.generation import load_language_model
    from shoal.serve.http.server import SWITCH_SECONDS
    from shoal.serve.request import Piece, Request
    from shoal.serve.sampling import Sampling

    torch.set_num_threads(arguments.threads)
    language = load_language_model(arguments.model)
    engine = make_engine(language, arguments.clients, queue=arguments.clients)
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)
    texts = prompts_of(arguments)

    def write(requests: int) -> int:
        """As many streams as there are clients, each with so many texts; returns the number of tokens."""
        done = threading.Semaphore(0)
        total = [0]

        def begin() -> None:
            prompt = tuple(language.tokenizer.encode(next(texts)).tolist())

            def tell(piece: Piece) -> None:
                if piece.finish is not None:
                    total[0] += piece.tokens
                    done.release()

            engine.submit(Request(prompt, arguments.tokens, Sampling(0)), tell)

        for _ in range(arguments.clients):
            begin()
        for number in range(arguments.clients * requests):
            done.acquire()
            if number < arguments.clients * (requests - 1):
                begin()
        return total[0]

    write(1)
    began = time.perf_counter()
    tokens = write(arguments.requests)
    seconds = time.perf_counter() - began
    engine.close()
    return {"tokens_per_second": tokens / seconds, "tokens": tokens, "seconds": seconds}


def compare(arguments: Arguments) -> None:
    rounds = take_turns(contenders(arguments), arguments.rounds)
    engine = median(rounds.get(ENGINE, []), "tokens_per_second")
    rows = [row(name, rounds, engine) for name in rounds]
    title = f"{arguments.clients} clients that stream completions of {arguments.tokens} tokens at once"
    notes = [
        f"{arguments.threads} threads, fp32, greedy; {arguments.requests} requests a client and round, medians of rounds."
    ]
    peers = [median(rounds[name], "tokens_per_second") for name in PEERS if name in rounds]
    if peers and SHOAL in rounds:
        ratio = median(rounds[SHOAL], "tokens_per_second") / max(peers)
        notes.append(f"{SHOAL}: {ratio:.2f} × the faster way of transformers serve.")
    publish(f"serve-{arguments.model.name}", title, COLUMNS, rows, notes, rounds, "serve")


def row(name: str, rounds: Rounds, engine: float) -> list[str]:
    results = rounds[name]
    speeds = [result["tokens_per_second"] for result in results]
    return [
        name,
        shown(median(results, "tokens_per_second")),
        f"{min(speeds):,.0f}–{max(speeds):,.0f}",
        shown(median(results, "tokens_per_second") / engine, "{:.0%}"),
        shown(1000 * median(results, "first_token_p50"), "{:,.0f} ms"),
        shown(1000 * median(results, "first_token_p99"), "{:,.0f} ms"),
    ]


async def leave(server: Server, prompt: str, tokens: int, choose: random.Random) -> None:
    """A request that is begun, and left: before anything comes, or after some of it, or with a reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    how = choose.choice(["at once", "whole", "head", "stream", "reset"])
    request = request_bytes(server, prompt, tokens, stream=how != "whole")
    writer.write(request[: len(request) // 2] if how == "head" else request)
    if how in ("stream", "reset"):
        for _ in range(choose.randint(1, 4)):
            await reader.read(4096)
    elif how == "whole":
        await asyncio.sleep(choose.random() / 20)
    if how == "reset":
        writer.transport.abort()
    else:
        writer.close()


def figures(server: Server) -> dict[str, float]:
    text = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics").read().decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def soak(arguments: Arguments) -> None:
    """Clients that leave, a thousand at a time, and what is left of them."""
    choose, texts = random.Random(1), itertools.cycle(prompts(200))
    rows: list[list[str]] = []
    results: list[Result] = []

    async def crowd(count: int) -> None:
        at_once = asyncio.Semaphore(32)

        async def one() -> None:
            async with at_once:
                await leave(server, next(texts), arguments.tokens, choose)

        await asyncio.gather(*(one() for _ in range(count)))

    with shoal_server(arguments, 8) as server:
        for done in range(0, arguments.disconnects, 1000):
            count = min(1000, arguments.disconnects - done)
            asyncio.run(crowd(count))
            while (found := figures(server))["shoal_running"] or found["shoal_waiting"] or found["shoal_requests_open"] > 1:
                time.sleep(0.1)
            [answer] = answers(server, 1, 1, arguments.tokens, iter(["def main("]))
            result = {
                "left": done + count, "memory_bytes": found["process_resident_memory_bytes"],
                "open_files": found["process_open_fds"], "first_token_seconds": answer.first_token_seconds,
            }  # fmt: skip
            results.append(result)
            progress.print(f"{result['left']:,} have left: {result['memory_bytes'] / 1e6:,.1f} MB, no slot taken")
            rows.append([
                f"{result['left']:,}", f"{result['memory_bytes'] / 1e6:,.1f} MB", f"{result['open_files']:.0f}",
                f"{1000 * answer.first_token_seconds:.0f} ms",
            ])  # fmt: skip
    columns = ["clients that left", "memory", "open files", "first token after"]
    notes = ["After each row no text held a slot or waited, and a request was answered."]
    publish("serve-disconnects", "What clients leave behind", columns, rows, notes, {"shoal serve": results}, "serve")


if __name__ == "__main__":
    chosen = tyro.cli(Arguments, description=__doc__)
    sys.exit(soak(chosen) if chosen.disconnects else compare(chosen))
