"""A GGUF file holds the folder's model and tokenizer: transformers, which reads GGUF by itself, gets the same logits and ids from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import torch

from data.config import END_OF_TEXT, TokenizerConfig
from data.tokenizers import trainers
from inference.to_gguf import main
from model.config import ModelConfig
from model.gpt import GPT
from model.hugging_face.conversion import to_folder
from tests.model.hugging_face.test_hugging_face import scatter
from tests.tiny_models import tiny

gguf = pytest.importorskip("gguf")

# 7 rows of the embedding are no token's. 96 = 4 x 24: transformers takes that for granted in a GPT-2.
SIZES = {"vocab_size": 307, "intermediate_size": 96}
MODELS = {
    "gpt2": tiny("gpt2", activation="gelu_tanh", **SIZES),
    "gpt2-untied": tiny("gpt2", activation="gelu_tanh", tie_embeddings=False, use_bias=False, **SIZES),
    "llama": tiny("llama", num_heads=4, num_kv_heads=2, rotary_base=5e5, **SIZES),
    "llama-interleaved-tied": tiny("llama", rotary_style="interleaved", tie_embeddings=True, norm_eps=1e-6, **SIZES),
}


def export(config: ModelConfig, verse: Path, folder: Path, kind: str = "byte_bpe") -> GPT:
    """A folder as `inference.export` makes it."""
    model = GPT(config, seed=0).eval()
    scatter(model)
    to_folder(model, config, folder, config.family)
    settings = TokenizerConfig(kind=kind, vocab_size=300)  # type: ignore[arg-type]
    trainers.train([verse.read_text(encoding="utf-8")], settings, folder)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(ids), encoding="utf-8")
    return model


@pytest.mark.parametrize("name", MODELS)
def test_the_file_gives_the_folders_logits_and_ids(name: str, verse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = export(MODELS[name], verse, tmp_path / "exported")
    out = tmp_path / "file" / "model.gguf"
    out.parent.mkdir()
    assert main([str(tmp_path / "exported"), str(out)]) == 0
    assert capsys.readouterr().err == ""
    assert [path.name for path in out.parent.iterdir()] == ["model.gguf"]

    # As from_pretrained(gguf_file=...) does, which also wants the accelerate package.
    config = AutoConfig.from_pretrained(out.parent, gguf_file=out.name)
    if config.model_type == "gpt2":
        config.n_positions = config.n_ctx  # it reads the length of the context under the old name only
    theirs = AutoModelForCausalLM.from_config(config).eval()
    theirs.load_state_dict(load_gguf_checkpoint(str(out), return_tensors=True, model_to_load=theirs)["tensors"])
    tokens = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), atol=2e-5, rtol=0)  # fp32, sums in other orders
    text = "床前明月光，疑是 地上霜。\n  mixed 123 text's 𠮷"
    wanted = AutoTokenizer.from_pretrained(tmp_path / "exported")(text).input_ids
    assert AutoTokenizer.from_pretrained(out.parent, gguf_file=out.name)(text).input_ids == wanted


def test_the_file_says_what_llama_cpp_needs_to_cut_text_as_in_training(verse: Path, tmp_path: Path) -> None:
    export(MODELS["gpt2"], verse, tmp_path / "exported")
    assert main([str(tmp_path / "exported"), str(tmp_path / "model.gguf")]) == 0
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    said = {name: fields[f"tokenizer.ggml.{name}"].contents() for name in ("model", "pre", "eos_token_id", "add_bos_token")}
    assert said == {"model": "gpt2", "pre": "gpt-2", "eos_token_id": 0, "add_bos_token": False}
    assert fields["gpt2.context_length"].contents() == 24
    tokens, kinds = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    assert (len(tokens), tokens[0], kinds[0]) == (307, "<|endoftext|>", 3)  # a control token, which no text spells
    assert kinds.count(5) == 7  # no token's


def test_a_beginning_is_put_in_front_as_the_folder_has_it_and_of_several_ends_the_first_is_kept(
    verse: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export(MODELS["gpt2"], verse, tmp_path / "exported")
    path = tmp_path / "exported" / "tokenizer.json"
    backend = tokenizers.Tokenizer.from_file(str(path))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", pair=f"{END_OF_TEXT} $A $B", special_tokens=[(END_OF_TEXT, 0)]
    )
    backend.save(str(path))
    ids = {"bos_token_id": 0, "eos_token_id": [0, 5]}
    (tmp_path / "exported" / "generation_config.json").write_text(json.dumps(ids), encoding="utf-8")
    assert main([str(tmp_path / "exported"), str(tmp_path / "model.gguf")]) == 0
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    said = [fields[f"tokenizer.ggml.{name}"].contents() for name in ("add_bos_token", "bos_token_id", "eos_token_id")]
    assert said == [True, 0, 0]
    assert ["eos_token_id = [0, 5]; a GGUF file has one, the first" in message for message in caplog.messages] == [True]


def test_tokens_that_were_added_for_words_of_a_text_are_found_in_it(verse: Path, tmp_path: Path) -> None:
    export(MODELS["gpt2"], verse, tmp_path / "exported")
    path = tmp_path / "exported" / "tokenizer.json"
    backend = tokenizers.Tokenizer.from_file(str(path))
    assert backend.add_tokens(["红楼梦"]) == 1
    backend.save(str(path))
    assert main([str(tmp_path / "exported"), str(tmp_path / "model.gguf")]) == 0
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    tokens, kinds = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    # llama.cpp looks for the names of user-defined tokens in a text, and no merge leads to one.
    assert (tokens[300], kinds[300], kinds[299], kinds[301]) == ("红楼梦", 4, 1, 5)


def test_what_a_gguf_file_cannot_hold_is_one_line(verse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(tiny("opt", **SIZES), verse, tmp_path / "opt")
    export(tiny("gpt2", activation="relu", **SIZES), verse, tmp_path / "relu")
    export(tiny("llama", use_bias=True, **SIZES), verse, tmp_path / "biased")
    export(tiny("gpt2", activation="gelu_tanh", **SIZES), verse, tmp_path / "characters", "characters")
    out = tmp_path / "model.gguf"
    for name, said in (
        ("opt", "llama.cpp has no opt. Export the run with --format gpt2 or llama."),
        ("relu", 'model.activation = "relu", which llama.cpp\'s gpt2 does not compute.'),
        ("biased", "model.use_bias = true, which llama.cpp's llama does not compute."),
        ("characters", "is no byte-level BPE that cuts a text as GPT-2's does"),
        ("nowhere", "no such folder"),
    ):
        assert main([str(tmp_path / name), str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert not out.exists()
    assert main([str(tmp_path / "opt"), str(tmp_path / "gone" / "model.gguf")]) == 2
    assert "model.gguf: cannot be written. Name a file in a folder that exists." in capsys.readouterr().err


def test_an_exact_gelu_is_converted_with_a_warning(verse: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export(tiny("gpt2", **SIZES), verse, tmp_path / "exported")
    assert main([str(tmp_path / "exported"), str(tmp_path / "model.gguf")]) == 0
    assert ["llama.cpp approximates it (gelu_tanh)" in message for message in caplog.messages] == [True]
