"""datatrove: JSONL files to cleaned, deduplicated token files, by its own pipeline in two processes.

FTFY, the filters of Gopher (quality and repetition), C4 (without the rule on line ends, as FineWeb has it) and FineWeb,
then MinHash in its four steps, then tokens: what its example for FineWeb does, but for the language filter, whose model
it would download. Timed from the first document read to the last token written; the kept documents' ids are given too.
"""

import argparse
import json
import resource
import shutil
import time
from pathlib import Path

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.formatters.ftfy import FTFYFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.utils.hashing import HashConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="JSONL files with the fields id and text")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json; none: no tokens, but the ids of what is kept")
    parser.add_argument("--output", type=Path, required=True, help="an empty folder for all that is written")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--filters", type=int, default=1, help="0: only what finds duplicates")
    parser.add_argument("--ngram", type=int, default=5)
    parser.add_argument("--buckets", type=int, default=14)
    parser.add_argument("--hashes", type=int, default=8)
    options = parser.parse_args()
    output, log = options.output, options.output / "log"
    minhash = MinhashConfig(
        n_grams=options.ngram,
        num_buckets=options.buckets,
        hashes_per_bucket=options.hashes,
        hash_config=HashConfig(precision=64),
    )

    def run(name: str, tasks: int, *steps: PipelineStep) -> None:
        workers = min(tasks, options.processes)
        LocalPipelineExecutor(list(steps), tasks=tasks, workers=workers, logging_dir=str(log / name)).run()

    started = time.perf_counter()
    texts = options.folder
    if options.filters:
        texts = output / "filtered"
        run(
            "filters", options.processes,
            JsonlReader(str(options.folder)), FTFYFormatter(), GopherRepetitionFilter(), GopherQualityFilter(),
            C4QualityFilter(filter_no_terminal_punct=False), FineWebQualityFilter(char_duplicates_ratio=0.1),
            JsonlWriter(str(texts), compression=None),
        )  # fmt: skip
    signatures, buckets, doomed = (str(output / name) for name in ("signatures", "buckets", "doomed"))
    run("signatures", options.processes, JsonlReader(str(texts)), MinhashDedupSignature(signatures, config=minhash))
    run("buckets", options.buckets, MinhashDedupBuckets(signatures, buckets, config=minhash))
    run("cluster", 1, MinhashDedupCluster(buckets, doomed, config=minhash))
    last = (
        DocumentTokenizer(str(output / "tokens"), str(options.tokenizer), eos_token="<|endoftext|>", shuffle_documents=False)
        if options.tokenizer
        else JsonlWriter(str(output / "kept"), compression=None)
    )
    run("kept", options.processes, JsonlReader(str(texts)), MinhashDedupFilter(doomed), last)
    seconds = time.perf_counter() - started

    sizes = [path.stat().st_size for path in (output / "tokens").glob("*.ds")] if options.tokenizer else []
    kept = [json.loads(line)["id"] for path in (output / "kept").glob("*.jsonl") for line in path.open(encoding="utf-8")]
    result = {
        "peer": "datatrove",
        "seconds": seconds,
        "tokens": sum(sizes) // 2,
        "kept": kept,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }
    shutil.rmtree(log)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
