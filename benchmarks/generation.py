"""Tokens per second at batch 1, against transformers' own `generate` in the same process, and how often each precision agrees with fp32.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/generation.py [--run RUN_OR_FOLDER --text FILE]

The speed is that of a GPT-2 of 124 M parameters with random weights, greedy. All precisions take turns, so that whatever else the machine
does falls on all of them; the best of the rounds counts. With a trained model and a text it was not trained on, the share of tokens whose
likeliest successor is the same as in fp32, and the loss, are told too: those of random weights would say nothing.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from inference.export import find_folder
from inference.generation.engine import Engine, load_engine
from inference.generation.settings import SamplingParams
from inference.generation.writing import generate

PROMPT_TOKENS = 16
DTYPES = ("fp32", "bf16", "int8")


def write_model(folder: Path) -> None:
    """A GPT-2 of 124 M parameters, and a tokenizer whose tokens are numbers."""
    import tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(bos_token_id=None, eos_token_id=None, pad_token_id=0)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    words = tokenizers.models.WordLevel({f"{index} ": index for index in range(config.vocab_size)}, unk_token="0 ")
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))


def speeds(folder: Path, num_tokens: int, rounds: int) -> dict[str, float]:
    from transformers import AutoModelForCausalLM

    prompt = list(range(1, PROMPT_TOKENS + 1))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    engines = {dtype: load_engine(folder, dtype=dtype) for dtype in DTYPES}
    ids = torch.tensor([prompt])

    def write_plainly() -> None:
        plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False, pad_token_id=0)

    def write(engine: Engine) -> None:
        (text,) = generate(engine, [prompt], SamplingParams(new_tokens=num_tokens, temperature=0))
        assert text.num_tokens == num_tokens

    runs: dict[str, Callable[[], None]] = {"transformers, fp32": write_plainly}
    runs |= {dtype: lambda engine=engine: write(engine) for dtype, engine in engines.items()}
    best = dict.fromkeys(runs, math.inf)
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:  # the first round warms up
                best[name] = min(best[name], time.perf_counter() - start)
    return {name: num_tokens / seconds for name, seconds in best.items()}


def agreement(folder: Path, text: str, num_rows: int) -> dict[str, tuple[float, float]]:
    """For each precision: the share of tokens whose likeliest successor is fp32's, and the loss in nats per token."""
    engines = {dtype: load_engine(folder, dtype=dtype) for dtype in DTYPES}
    exact = engines["fp32"]
    tokens = torch.tensor(exact.tokenizer.encode(text))
    length = min(exact.max_positions, 1024)
    rows = tokens[: len(tokens) // length * length].view(-1, length)[:num_rows]
    same, loss = dict.fromkeys(DTYPES, 0), dict.fromkeys(DTYPES, 0.0)
    with torch.inference_mode():
        for row in rows:
            logits = {dtype: engine.core.module(input_ids=row[None]).logits[0, :-1].float() for dtype, engine in engines.items()}
            for dtype, scores in logits.items():
                same[dtype] += int((scores.argmax(-1) == logits["fp32"].argmax(-1)).sum())
                loss[dtype] += float(torch.nn.functional.cross_entropy(scores, row[1:], reduction="sum"))
    count = rows.shape[0] * (length - 1)
    return {dtype: (same[dtype] / count, loss[dtype] / count) for dtype in DTYPES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, metavar="RUN_OR_FOLDER")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="UTF-8; its last 40,000 characters are read, which the quickstart has not been trained on"
    )
    parser.add_argument("--num-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch))
        rates = speeds(Path(scratch), options.num_tokens, options.rounds)
    print(f"{torch.get_num_threads()} threads, {options.num_tokens} tokens after {PROMPT_TOKENS}, best of {options.rounds}")
    for name, rate in rates.items():
        print(f"{name:20} {rate:6.1f} tokens/s {rate / rates['transformers, fp32']:5.2f}x")
    if options.run and options.text:
        found = agreement(find_folder(options.run), options.text.read_text(encoding="utf-8")[-40_000:], num_rows=40)
        for dtype, (share, loss) in found.items():
            print(f"{dtype:20} likeliest token as in fp32: {100 * share:.2f}%, loss {loss:.4f}")


if __name__ == "__main__":
    main()
