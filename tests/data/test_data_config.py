"""`data`'s section: what is refused, and which keys make another store."""

import pytest

from data.config import DataConfig
from data.store.identity import spell_out
from ds_configs import ConfigError, build_section

GOOD = {"corpus": "hongloumeng", "seq_length": 8, "tokenizer": {"kind": "byte_bpe", "vocab_size": 300}}


def problems(**changes):
    with pytest.raises(ConfigError) as caught:
        build_section(DataConfig, {**GOOD, **changes}, "data", "run.json")
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": None}, "corpus/path, sources, store: none of them given"),
        ({"store": "x"}, "corpus and store given; exactly one"),
        ({"sources": []}, "corpus and sources given"),
        ({"corpus": None, "sources": []}, "data.sources = []; name at least one."),
        ({"corpus": None, "sources": [{"path": "a", "weight": 1}, {"path": "b"}]}, "either all of them have a weight or none"),
        ({"corpus": None, "sources": [{"path": "a"}], "chapters": {}}, "give it to each of the sources"),
        ({"corpus": None, "sources": [{"path": "a", "weight": 1}], "max_train_tokens": 5}, "with weighted sources"),
        (
            {"corpus": None, "sources": [{"path": "a", "weight": 1}, {"path": "b", "weight": 0.0001}]},
            r"data.sources: the weights [1.0, 0.0001] differ so much that the least would get less than one sample in 1000",
        ),
        ({"corpus": None, "sources": [{"path": "a", "weight": 0}]}, "weight = 0; it must be a number above 0"),
        ({"seq_length": 0}, "data.seq_length = 0; it must be an integer of 1 or more."),
        ({"max_bad_ratio": 2}, "data.max_bad_ratio = 2; it must be a number from 0 to 1."),
        ({"validation": {}}, "last_documents, ratio, last_shards: none of them given"),
        ({"validation": {"ratio": 0.1, "last_shards": 1}}, "ratio and last_shards given"),
        ({"validation": {"ratio": 1}}, "data.validation.ratio = 1.0; it must be between 0 and 1"),
        ({"tokenizer": {"kind": "byte_bpe"}}, "data.tokenizer.vocab_size is missing"),
        ({"tokenizer": {"kind": "byte_bpe", "vocab_size": 256}}, "byte_bpe needs at least 257"),
        ({"tokenizer": {"kind": "existing"}}, 'data.tokenizer.path = None; kind "existing" needs the path'),
        ({"tokenizer": {"kind": "characters", "path": "x"}}, "data.tokenizer.path = x"),
        ({"tokenizer": {"kind": "characters", "eos_token": "x"}}, "only an existing tokenizer needs to be told"),
        ({"corpus": None, "store": "x"}, 'kind "existing" and its path'),
        (
            {"chapters": {}, "template": "{text}"},
            "data.template = {text}; it must be null: with chapters a document is a chapter as it is.",
        ),
        ({"chapters": {"first": 3, "last": 2}}, "last is not before first"),
        ({"reverse": {}}, 'only the corpus "reverse" has these parameters'),
        ({"corpus": "sanguo"}, 'data.corpus = "sanguo" is not known. Known here: chinese-poetry, hongloumeng, reverse.'),
        ({"corpus": "reverse", "template": "{text}"}, 'template = {text}; it must be null: the corpus "reverse" is generated.'),
        ({"corpus": "reverse", "path": "a.txt"}, 'path = a.txt; it must be null: the corpus "reverse" is generated.'),
        ({"corpus": "reverse", "reverse": {"alphabet": "aa"}}, "none of them twice"),
        ({"corpus": "reverse", "reverse": {"alphabet": "a>"}}, "one character that is not in the alphabet"),
        ({"clean": [{"rule": "min_lenth"}]}, '"min_lenth" is not a rule. Did you mean "min_length"?'),
        ({"deduplicate": {"near": {"bands": 0}}}, "bands = 0"),
        ({"pack": {"length": 0}}, "data.pack.length = 0"),
        ({"pack": {"length": 1 << 31}}, "data.pack.length = 2147483648"),
        ({"tokenizer": {"kind": "byte_bpe", "vocab_size": 10**10}}, "it must be an integer from 1 to"),
        ({"corpus": None, "path": "\udcca\udcab.txt"}, r"data.path = '\udcca\udcab.txt' is no text: it has bytes that are not UTF-8"),
        ({"corpus": None, "path": ["a.txt", "\udcca.txt"]}, r"data.path[1] = '\udcca.txt' is no text"),
        ({"clean_rules": []}, 'unknown key "data.clean_rules"'),
    ],
)
def test_a_mistake_is_named_with_its_key_and_what_is_wanted(changes, message):
    assert message in problems(**changes)


def test_what_only_says_how_to_read_does_not_make_another_store():
    one = build_section(DataConfig, GOOD, "data", "run.json")
    other = build_section(
        DataConfig, {**GOOD, "seq_length": 16, "windows": "documents", "num_workers": 4, "directory": "x"}, "data", "run.json"
    )

    assert spell_out(one) == spell_out(other)


def test_what_decides_the_tokens_makes_another_store():
    one = build_section(DataConfig, GOOD, "data", "run.json")
    for change in ({"clean": []}, {"shuffle": True}, {"chapters": {}}, {"max_train_tokens": 5}, {"validation": {"ratio": 0.2}}):
        assert spell_out(build_section(DataConfig, {**GOOD, **change}, "data", "run.json")) != spell_out(one)
