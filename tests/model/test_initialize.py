"""Where first weights come from: which tensor of a folder each layer gets, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import InitializeConfig, ModelConfig
from model.gpt import GPT
from model.hugging_face.conversion import to_folder
from model.hugging_face.pretrained import default_starting_layers
from model.initialize import Weights
from model.layers.cross_entropy import loss
from tests.tiny_models import tiny

SOURCE_SEED, SEED = 100, 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One four-layer model of each family as a folder."""
    made = {}
    for family in ("gpt2", "llama", "opt"):
        made[family] = tmp_path_factory.mktemp(family)
        config = source(family)
        to_folder(GPT(config, seed=SOURCE_SEED), config, made[family], family)
    return made


def source(family: str) -> ModelConfig:
    return tiny(family, num_layers=4)


def start(folder: Path, family: str = "opt", *, num_layers: int = 4, **initialize: Any) -> ModelConfig:
    settings = InitializeConfig(**{"method": "folder", "folder": str(folder), **initialize})
    return tiny(family, num_layers=num_layers, initialize=settings)


def same_blocks(model: GPT, original: GPT, layers: tuple[int, ...]) -> bool:
    """Whether block i of the model is block layers[i] of the original."""
    mine, theirs = model.state_dict(), original.state_dict()
    pairs = [(f"{2 + half + 2 * i}.", f"{2 + half + 2 * layer}.") for i, layer in enumerate(layers) for half in (0, 1)]
    return all(
        torch.equal(tensor, theirs[their + name.removeprefix(my)])
        for my, their in pairs
        for name, tensor in mine.items()
        if name.startswith(my)
    )


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_a_folder_gives_every_layer_its_weights_whatever_the_seed(folders, family):
    original = GPT(source(family), seed=SOURCE_SEED).state_dict()
    model = GPT(start(folders[family], family), seed=SEED).state_dict()
    assert model.keys() == original.keys()
    assert all(torch.equal(tensor, original[name]) for name, tensor in model.items())


@pytest.mark.parametrize(
    ("counts", "layers"),
    [
        ((12, 16), (0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 8, 9, 10, 11)),
        ((12, 10), (0, 1, 2, 3, 4, 7, 8, 9, 10, 11)),
        ((12, 12), tuple(range(12))),
        ((4, 3), (0, 1, 3)),
        ((2, 5), (0, 0, 0, 1, 1)),
        ((3, 1), (0,)),
    ],
)
def test_depth_scaling_takes_the_first_half_from_the_front_and_the_second_from_the_back(counts, layers):
    assert default_starting_layers(*counts) == layers


@pytest.mark.parametrize(
    ("num_layers", "listed", "layers"),
    [(6, None, (0, 1, 2, 1, 2, 3)), (3, None, (0, 1, 3)), (5, (3, 3, 0, 1, 2), (3, 3, 0, 1, 2)), (4, (0, 0, 1, 1), (0, 0, 1, 1))],
)
def test_a_depth_scaled_model_starts_from_copies_of_the_listed_layers(folders, num_layers, listed, layers):
    original = GPT(source("opt"), seed=SOURCE_SEED)
    model = GPT(start(folders["opt"], num_layers=num_layers, method="depth", layers=listed), seed=SEED)
    assert same_blocks(model, original, layers)
    ends = model.state_dict(), original.state_dict()
    last = f"{2 + 2 * num_layers}.norm.weight"
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ("0.weight", "1.weight"))
    assert torch.equal(ends[0][last], ends[1]["10.norm.weight"])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_replaced_vocabulary_draws_embedding_and_head_and_keeps_the_rest(folders, family):
    config = replace(start(folders[family], family, embeddings=False), vocab_size=97)
    original = GPT(source(family), seed=SOURCE_SEED)
    model = GPT(config, seed=SEED)
    fresh = GPT(replace(config, initialize=InitializeConfig()), seed=SEED).state_dict()
    assert same_blocks(model, original, (0, 1, 2, 3))
    drawn = [name for name in ("0.weight", "11.weight") if name in fresh]
    assert all(torch.equal(model.state_dict()[name], fresh[name]) for name in drawn)
    if family == "gpt2":
        assert torch.equal(model.get_parameter("1.weight"), original.get_parameter("1.weight"))  # positions are no vocabulary


def test_a_llama_of_the_other_rotary_style_starts_as_the_same_function(folders):
    config = replace(start(folders["llama"], "llama"), rotary_style="interleaved")
    model, original = GPT(config, seed=SEED), GPT(source("llama"), seed=SOURCE_SEED)
    tokens = torch.randint(61, (2, 24))
    assert not torch.equal(model.get_parameter("2.qkv.weight"), original.get_parameter("2.qkv.weight"))
    torch.testing.assert_close(model(tokens), original(tokens), atol=1e-6, rtol=0)  # fp32, features in another order


@pytest.mark.parametrize(
    ("family", "changes", "initialize", "message"),
    [
        (
            "opt",
            {},
            {"folder": "llama"},
            'its llama model (rmsnorm, rotary positions, silu_gated) has not the layers of model.family = "opt" (layernorm,',
        ),
        ("gpt2", {}, {"folder": "opt"}, 'its opt model (layernorm, learned positions, relu) has not the layers of model.family = "gpt2"'),
        ("opt", {"hidden_size": 48}, {}, "config.json: hidden_size = 24 (model.hidden_size = 48). Give the model the folder's values"),
        ("opt", {"use_bias": False}, {}, "use_bias = True (model.use_bias = False)"),
        ("opt", {"max_seq_length": 20}, {}, "max_seq_length = 24 (model.max_seq_length = 20)"),
        (
            "opt",
            {"vocab_size": 64},
            {},
            "config.json: vocab_size = 61 (model.vocab_size = 64). Give the model the folder's values, or set model.initialize.embeddings",
        ),
        (
            "opt",
            {"tie_embeddings": False},
            {},
            'has no "lm_head.weight". model.tie_embeddings is false. Was it trained with tied embeddings?',
        ),
        (
            "llama",
            {"tie_embeddings": True},
            {"folder": "llama"},
            '"lm_head.weight" is a matrix of its own and model.tie_embeddings is true',
        ),
        ("opt", {"num_layers": 6}, {}, 'has 4 layers and model.num_layers = 6. Set model.initialize.method = "depth"'),
        ("opt", {}, {"method": "depth", "layers": (0, 1, 2, 4)}, "has layers 0 to 3, and model.initialize.layers names 4"),
        ("opt", {}, {"folder": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_in_one_line_before_anything_is_built(folders, family, changes, initialize, message):
    name = initialize.get("folder", "opt")
    settings = {**initialize, "folder": str(folders.get(name, Path(name)))}
    config = replace(start(folders["opt"], family), initialize=InitializeConfig(**{"method": "folder", **settings}))
    with pytest.raises(ValueError) as error:
        Weights(replace(config, **changes), SEED)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def sequences(count: int) -> torch.Tensor:
    """Rows that a model can learn: runs that count up from a random token."""
    starts = torch.randint(61, (count, 1))
    return (starts + torch.arange(25)) % 61


def test_a_trained_model_grown_by_copies_is_closer_to_itself_than_to_a_random_one(tmp_path):
    """12 -> 16 layers: by copying, most of what was learnt survives."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64}
    config = tiny("opt", num_layers=12, **shape)
    model = GPT(config, seed=SOURCE_SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        rows = sequences(16)
        optimizer.zero_grad()
        loss(model(rows[:, :-1]), rows[:, 1:]).backward()
        optimizer.step()
    to_folder(model, config, tmp_path, "opt")
    grown_config = tiny("opt", num_layers=16, initialize=InitializeConfig(method="depth", folder=str(tmp_path)), **shape)
    rows = sequences(64)
    with torch.no_grad():
        models = (model, GPT(grown_config, seed=SEED), GPT(replace(grown_config, initialize=InitializeConfig()), seed=SEED))
        trained, grown, random = (loss(one(rows[:, :-1]), rows[:, 1:]).item() for one in models)
    assert trained < 0.5 * random
    assert abs(grown - trained) < abs(grown - random)
