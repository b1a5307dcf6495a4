"""Write an exported folder as one GGUF file, which llama.cpp and what is built on it load.

    python -m inference.to_gguf FOLDER OUT.gguf

Weights are fp32; llama.cpp's own `llama-quantize` makes smaller files of them. The `gguf` package is needed (pip install gguf).
llama.cpp's converter knows tokenizers by a list of published ones, so it refuses a tokenizer that was trained for a run; this does not.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.packages import require
from ds_configs.atomic_files import check_output, object_or_nothing, replacing
from ds_configs.commands import command
from inference.export import check_weights
from inference.exporting.model_path import find_model, token_ids
from inference.generation.text import FolderTokenizer
from training.checkpoints.find_and_verify import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from model.config import ModelConfig
    from model.gpt import GPT

log = logging.getLogger(__name__)

ARCHITECTURES = ("gpt2", "llama")
# The pieces of text within which GPT-2's merges stay; llama.cpp has them under the name "gpt-2".
GPT2_PIECES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of token in GGUF


def to_gguf(folder: Path, out: Path) -> None:
    """Write the model and the tokenizer of a Hugging Face folder as a GGUF file, which appears whole or not at all.

    Raises:
        CheckpointError: If it is no folder, or GGUF cannot hold its model or its tokenizer.
        ValueError: If the folder cannot be read, or `out` not be written.
    """
    gguf = require("gguf", "writing a GGUF file", "gguf")
    from model.hugging_face.conversion import from_folder

    check_output(out)
    if find_model(folder).kind != "folder":
        raise CheckpointError(f"{folder}: is no exported folder. Export it first: .venv/bin/python -m inference.export {folder} OUT")
    values = object_or_nothing(folder / "config.json")
    architecture = str(values["model_type"])
    if architecture not in ARCHITECTURES:
        raise CheckpointError(f"{folder}: llama.cpp has no {architecture}. Export the run with --format gpt2 or llama.")
    check_weights(folder)
    config, model = from_folder(folder)
    if lacking := _lacking(config, architecture):
        raise CheckpointError(f"{folder}: {lacking}, which llama.cpp's {architecture} does not compute.")
    if config.activation == "gelu":
        log.warning('%s: model.activation = "gelu"; llama.cpp approximates it (gelu_tanh), so logits differ by about 0.001.', folder)

    with replacing(out) as partial:
        writer = gguf.GGUFWriter(partial, architecture)
        _describe(writer, config, folder.resolve().name)
        _describe_tokens(writer, folder, config.vocab_size)
        names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.upper()), config.num_layers)
        for name, tensor in _tensors(model, config, architecture):
            known = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert known is not None, f"{name} is of an architecture that GGUF has"
            writer.add_tensor(known, tensor.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _lacking(config: "ModelConfig", architecture: str) -> str | None:
    """The field that is in the way, if there is one."""
    if architecture == "llama" and config.use_bias:
        return "model.use_bias = true"
    return 'model.activation = "relu"' if config.activation == "relu" else None


def _describe(writer: Any, config: "ModelConfig", name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(config.max_seq_length)
    writer.add_block_count(config.num_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(0)  # all fp32
    if config.position == "learned":
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rotary_base)


def _tensors(model: "GPT", config: "ModelConfig", architecture: str) -> "Iterator[tuple[str, Tensor]]":
    """Hugging Face's name and GGUF's values of every weight."""
    from model.hugging_face.conversion import named_tensors

    for name, tensor in named_tensors(model, config, architecture):
        if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            yield name, tensor.T  # only GPT-2's folders are transposed
        elif ".q_proj." in name or ".k_proj." in name:
            # GGUF turns neighbours, Hugging Face's Llama the halves of a head.
            yield name, tensor.unflatten(0, (-1, 2, config.head_size // 2)).transpose(1, 2).flatten(0, 2)
        else:
            yield name, tensor
        if config.tie_embeddings and name.endswith(("wte.weight", "embed_tokens.weight")):
            yield "lm_head.weight", tensor  # older versions of llama.cpp do not look for it in the embedding


def _describe_tokens(writer: Any, folder: Path, vocab_size: int) -> None:
    """The byte-level BPE of a folder, as GGUF says it."""
    tokenizer = object_or_nothing(folder / "tokenizer.json")
    bpe, pieces = tokenizer.get("model", {}), tokenizer.get("pre_tokenizer") or {}
    differing = [key for key, value in GPT2_PIECES.items() if pieces.get(key, value) != value]
    if bpe.get("type") != "BPE" or not pieces or differing or tokenizer.get("normalizer"):
        raise CheckpointError(
            f"{folder / 'tokenizer.json'}: is no byte-level BPE that cuts a text as GPT-2's does, the only kind that is written here "
            '(data.tokenizer.kind "byte_bpe"). Use llama.cpp\'s convert_hf_to_gguf.py, which knows some published ones.'
        )
    added = tokenizer.get("added_tokens", ())
    kinds = {entry["id"]: CONTROL if entry["special"] else USER_DEFINED for entry in added}
    names = {index: token for token, index in bpe["vocab"].items()} | {entry["id"]: entry["content"] for entry in added}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    # Rows of the embedding beyond the tokenizer's ids stand for nothing, and have to be called something.
    writer.add_token_list([names.get(index, f"[PAD{index}]") for index in range(vocab_size)])
    writer.add_token_types([kinds.get(index, NORMAL if index in names else UNUSED) for index in range(vocab_size)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]])
    writer.add_add_bos_token(bool(FolderTokenizer(folder).encode("")))
    for name, said in token_ids(folder).items():
        first, *others = said if isinstance(said, list) and said else [said]
        if others:
            log.warning("%s: %s = %s; a GGUF file has one, the first, and llama.cpp does not end a text at the others.", folder, name, said)
        if isinstance(first, int):
            getattr(writer, f"add_{name}")(first)


@command("inference.to_gguf")
def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m inference.to_gguf", description="Write an exported folder as a GGUF file.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder that inference.export made")
    parser.add_argument("out", type=Path, metavar="OUT.gguf", help="the file to write")
    options = parser.parse_args(arguments)
    to_gguf(options.folder, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 2**20:,.1f} MiB, fp32")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
