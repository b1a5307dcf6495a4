"""Measure libraries that could read, deduplicate or convert for us: equal results, broken input, speed, memory, import time.

    python benchmarks/data_libraries.py FILE [json zstd datasets datatrove minhash sentencepiece]

FILE is a long Chinese text in UTF-8 (data/downloads/hongloumeng.txt). A library that is not installed is left out, and said:
ijson, zstandard, datasets, rensa and orjson are no dependencies of this project. Speeds are per second of processor time;
compare lines of one run only.
"""

import argparse
import importlib.metadata
import io
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from data.cleaning.minhash import signatures, window_hashes
from data.cleaning_config import NearConfig
from data.documents import Document
from data.reading.formats import read
from data.reading.json_items import json_items
from data.reading.records import BadInput, Piece
from data.source_config import TextConfig
from data.tokenizers import sentencepiece_model

BROKEN = {
    "closing brace missing": '[{"text": "一"}, {"text": "二", {"text": "三"}, {"text": "四"}]',
    "comma missing": '[{"text": "一" "n": 1}, {"text": "二"}]',
    "number of 5000 digits": '[{"text": "一", "n": ' + "7" * 5000 + '}, {"text": "二"}]',
    "breaks off": '[{"text": "一"}, {"text": "二',
}


def main(arguments: Sequence[str]) -> int:
    """Run the chosen comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("which", nargs="*", default=list(COMPARISONS))
    options = parser.parse_args(arguments)
    text = options.file.read_text(encoding="utf-8")
    for name in options.which:
        print(f"== {name}")
        try:
            COMPARISONS[name](text)
        except ImportError as error:
            print(f"left out: {error}")
    return 0


def timed(label: str, text_bytes: int, run: Callable[[], Any]) -> Any:
    start = time.process_time()
    result = run()
    print(f"{label:42} {text_bytes / 1e6 / max(time.process_time() - start, 1e-9):8.1f} MB/s")
    return result


def about(package: str, module: str) -> None:
    """Print a library's version, its size without dependencies, and how long its import takes in a process of its own."""
    found = importlib.metadata.distribution(package)
    size = sum(
        Path(str(found.locate_file(file))).stat().st_size for file in found.files or [] if Path(str(found.locate_file(file))).is_file()
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    print(f"{package} {found.version}: {size / 1e6:.1f} MB, import {time.monotonic() - start:.1f} s")


def records_of(text: str) -> list[dict[str, Any]]:
    return [{"content": text[at : at + 400], "title": text[at : at + 7], "n": at} for at in range(0, len(text), 100)]


def json_arrays(text: str) -> None:
    """Compare ijson with json_items.py."""
    import ijson

    about("ijson", "ijson")
    records = records_of(text)
    content = json.dumps(records, ensure_ascii=False)
    data = content.encode("utf-8")
    for label, run in (
        ("json_items.py", lambda: list(json_items(io.StringIO(content)))),
        ("ijson", lambda: list(ijson.items(io.BytesIO(data), "item", use_float=True))),
    ):
        print(f"  equal: {timed(label, len(data), run) == records}")
    for what, broken in BROKEN.items():
        ours = list(json_items(io.StringIO(broken)))
        good = sum(not isinstance(item, BadInput) for item in ours)
        print(f"{what}: json_items.py {good} read, {len(ours) - good} counted as broken; ijson {_until_error(ijson, broken)}")


def zstd_libraries(text: str) -> None:
    """Compare zstandard with backports.zstd, which is used."""
    import zstandard

    about("zstandard", "zstandard")
    about("backports.zstd", "backports.zstd")
    import backports.zstd

    data = text.encode("utf-8")
    packed = zstandard.compress(data)
    for name, opened in (("zstandard", zstandard.ZstdDecompressor().stream_reader), ("backports.zstd", backports.zstd.open)):
        timed(name, len(data), lambda opened=opened: sum(map(len, _pieces(opened, packed))))
        print(f"  half of the file, in pieces of 64 KiB: {_count(_pieces(opened, packed[: len(packed) // 2]))}")


def _pieces(opened: Callable[[io.BytesIO], Any], packed: bytes) -> Iterator[bytes]:
    with opened(io.BytesIO(packed)) as file:
        while piece := file.read(1 << 16):
            yield piece


def _until_error(ijson: Any, broken: str) -> str:
    count = 0
    try:
        for _ in ijson.items(io.BytesIO(broken.encode("utf-8")), "item", use_float=True):
            count += 1
    except Exception as error:
        return f"{count} read, then {type(error).__name__} ends the file"
    return f"{count} read"


def streams_of_datasets(text: str) -> None:
    """Compare `datasets` (streaming) with the readers of files."""
    about("datasets", "datasets")
    import datasets

    with tempfile.TemporaryDirectory() as folder:
        whole, broken = (write_lines(Path(folder, f"{name}.jsonl"), records_of(text), name == "broken") for name in ("whole", "broken"))
        timed("formats.py", whole.stat().st_size, lambda: len(read_here(whole)))

        def stream(path: Path) -> Iterator[str]:
            loaded = datasets.load_dataset("json", data_files=str(path), split="train", streaming=True, cache_dir=folder)
            return (record["content"] for record in loaded)

        same = timed("datasets, streaming", whole.stat().st_size, lambda: list(stream(whole))) == read_here(whole)
        print(f"  equal: {same}; one broken line: formats.py {len(read_here(broken))} read, datasets {_count(stream(broken))}")


def readers_of_datatrove(text: str) -> None:
    """Compare datatrove's reader of JSON lines with ours."""
    about("datatrove", "datatrove.pipeline.readers")
    from datatrove.pipeline.readers import JsonlReader
    from loguru import logger

    logger.disable("datatrove")
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = (write_lines(Path(folder, f"{name}.jsonl"), records_of(text), name == "broken") for name in ("whole", "broken"))

        def theirs(path: Path) -> list[str]:
            reader = JsonlReader(folder, glob_pattern=path.name, text_key="content")
            return [document.text for document in reader.run()]

        timed("formats.py", whole.stat().st_size, lambda: len(read_here(whole)))
        same = timed("datatrove", whole.stat().st_size, lambda: theirs(whole)) == read_here(whole)
        lost = len(theirs(whole)) - len(theirs(broken))
        print(f"  equal: {same}; one broken line: datatrove leaves out {lost}, in its log and in no count")
        broken.write_bytes("\n".join(json.dumps({"content": text[:90]}, ensure_ascii=False) for _ in range(9)).encode("gb18030"))
        print(f"  in GB18030: formats.py {len(read_here(broken))} read, datatrove {_count(iter(lambda: theirs(broken), None))}")


def write_lines(path: Path, records: list[dict[str, Any]], broken: bool) -> Path:
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    if broken:
        lines[100] = lines[100][:-10]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def read_here(path: Path) -> list[str]:
    return [item.text for item in read(Piece(path, path.stat().st_size), TextConfig()) if isinstance(item, Document)]


def _count(items: Iterator[Any]) -> str:
    count = 0
    try:
        for _ in itertools.islice(items, 1_000_000):
            count += 1
    except Exception as error:
        return f"{count} read, then {type(error).__name__}"
    return f"{count} read"


def sketches(text: str) -> None:
    """Compare rensa with minhash.py, and say what rensa's index needs in memory. datatrove's needs spacy to find Chinese words."""
    import rensa

    about("rensa", "rensa")
    near = NearConfig()
    signatures([text[:100]], near)  # Tables are made once.
    for chars in (60, 600, 6000):
        texts = [text[at : at + chars] for at in range(0, len(text), chars)]
        size = sum(len(part.encode()) for part in texts)
        timed(f"minhash.py, texts of {chars} characters", size, lambda texts=texts: signatures(texts, near))
        timed("rensa on our windows", size, lambda texts=texts: _rensa_on_windows(rensa, texts, near))
        some = texts[: len(texts) // 10 + 1]
        size = sum(len(part.encode()) for part in some)
        timed("rensa on its strings", size, lambda some=some: _rensa_on_strings(rensa, some, near))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index = rensa.RMinHashLSH(0.35, near.num_hashes, near.bands)
    draw = np.random.default_rng(0)
    for start in range(0, 20_000, 1000):
        hashes = draw.integers(0, 1 << 32, 50_000, dtype=np.uint64)
        offsets = np.arange(0, 50_001, 50, dtype=np.uint64)
        index.insert_matrix(rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, near.num_hashes, 42), start)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    whole = grown / 20_000 * 5_000_000 / (1 << 20)
    print(f"rensa's index: {grown / 1024:.0f} MiB for 20,000 documents; for 5,000,000 that is {whole:.0f} GiB")


def _rensa_on_windows(rensa: Any, texts: Sequence[str], near: NearConfig) -> np.ndarray:
    hashes, counts = window_hashes(texts, near.ngram)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
    return np.array(rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes.astype(np.uint64), offsets, near.num_hashes, 42).to_rows())


def _rensa_on_strings(rensa: Any, texts: Sequence[str], near: NearConfig) -> Any:
    windows = [{text[at : at + near.ngram] for at in range(len(text))} for text in texts]
    return rensa.RMinHash.digest_matrix_from_token_sets(windows, near.num_hashes, 42)


def conversions(text: str) -> None:
    """Compare transformers' converter with sentencepiece_model.py, both against sentencepiece's own ids."""
    import sentencepiece
    from transformers.convert_slow_tokenizer import SentencePieceExtractor, SpmConverter

    probes = [text[at : at + 400] for at in range(0, len(text) - 400, len(text) // 100)]
    probes += ["  two  spaces and 龘; 𠀀 é \n\n\t end ", "ＡＢＣ  春眠 ", "甲<u>乙 <u> 丙", "<u>甲", " ", ""]
    for kind, as_is, symbols in itertools.product(("bpe", "unigram"), (True, False), ([], ["<u>", "贾宝"])):
        model = io.BytesIO()
        rules = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False} if as_is else {}
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text[:120_000].split("\n")), model_writer=model, model_type=kind, vocab_size=4000,
            byte_fallback=True, user_defined_symbols=symbols, minloglevel=2, **rules,
        )  # fmt: skip
        own = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        with tempfile.NamedTemporaryFile(suffix=".model") as file:
            file.write(model.getvalue())
            file.flush()
            extractor = SentencePieceExtractor(file.name)
            parts = extractor.extract(None)
        theirs = SpmConverter.build_tokenizer_from_spm_proto(extractor.proto, parts["vocab"], parts.get("merges"))
        theirs.add_tokens(parts["additional_special_tokens"])
        ours = sentencepiece_model.convert(model.getvalue(), "the model")
        wrong = []
        for backend in (ours, theirs):
            backend.encode_special_tokens = True
            wrong.append(sum(backend.encode(probe, add_special_tokens=False).ids != own.encode(probe) for probe in probes))
        options = f"{kind}, {'text as it is' if as_is else 'dummy prefix and normalisation'}{', user-defined symbols' if symbols else ''}"
        print(f"{options}: of {len(probes)} texts other ids from sentencepiece_model.py {wrong[0]}, from transformers {wrong[1]}")


COMPARISONS: dict[str, Callable[[str], None]] = {
    "json": json_arrays,
    "zstd": zstd_libraries,
    "datasets": streams_of_datasets,
    "datatrove": readers_of_datatrove,
    "minhash": sketches,
    "sentencepiece": conversions,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
