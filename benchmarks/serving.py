"""Sixteen requests at once against the same one after another, through the server's batch: a ratio within one run.

    OMP_NUM_THREADS=2 .venv/bin/python benchmarks/serving.py [--tokens 64] [--texts 16] [--dtype fp32]

The model has GPT-2's 124 M shape and random weights. Without HTTP, whose share is small at this size.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.config import TokenizerConfig
from data.tokenizers.trainers import train
from inference.generation.engine import Engine, load_engine
from inference.generation.settings import SamplingParams
from inference.server.batcher import Batcher
from inference.server.limits import Limits
from inference.server.sequence import Piece, SequenceState

VERSE = "床前明月光，疑是地上霜。举头望明月，低头思故乡。春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"


def make_engine(folder: Path, dtype: str) -> Engine:
    """124 M parameters, none of which writes the end of a text."""
    train([VERSE] * 20, TokenizerConfig(kind="byte_bpe", vocab_size=300), folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=50256)).save_pretrained(folder)
    return load_engine(folder, dtype=dtype)


def write(engine: Engine, batcher: Batcher, number: int, tokens: int, first_seed: int) -> float:
    """Seconds for so many texts at once."""
    over = threading.Semaphore(0)

    def tell(piece: Piece) -> None:
        if piece.finish_reason:
            over.release()

    sampling = [SamplingParams(new_tokens=tokens, temperature=1, top_p=1, seed=first_seed + index) for index in range(number)]
    prompt = engine.tokenizer.encode(VERSE[:12])
    sequences = [SequenceState(prompt, settings, tokens, engine.tokenizer, tell) for settings in sampling]
    start = time.perf_counter()
    batcher.submit(sequences)
    for _ in sequences:
        over.acquire()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--dtype", default="fp32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(Path(folder), options.dtype)
    limits = Limits(max_context=256, max_prompt_tokens=255, max_tokens=256, max_batch=options.texts, max_queue=options.texts)
    batcher = Batcher(engine, limits)
    batcher.start()
    write(engine, batcher, options.texts, 4, 0)
    at_once = one_by_one = 0.0
    # Interleaved: half of the single texts before the batch, half behind it.
    for seed in range(options.texts // 2):
        one_by_one += write(engine, batcher, 1, options.tokens, seed)
    at_once = write(engine, batcher, options.texts, options.tokens, 0)
    for seed in range(options.texts // 2, options.texts):
        one_by_one += write(engine, batcher, 1, options.tokens, seed)
    batcher.stop()
    total = options.texts * options.tokens
    print(f"{options.texts} texts of {options.tokens} tokens, {options.dtype}, {torch.get_num_threads()} threads")
    print(f"one after another {total / one_by_one:.1f} tokens/s, at once {total / at_once:.1f} tokens/s: {one_by_one / at_once:.2f}x")


if __name__ == "__main__":
    main()
