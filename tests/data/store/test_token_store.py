"""Shards of tokens: written, read back, refused when damaged, and readable by DeepSpeed's own class."""

import json
import subprocess
import sys

import numpy as np
import pytest

from data.documents import DataError
from data.inspect import main as inspect
from data.store import token_store
from tests.data.stores import flip_bit

DOCUMENTS = [np.arange(5), np.arange(5, 7), np.arange(7, 20)]


@pytest.fixture
def prefix(tmp_path):
    with token_store.ShardWriter(tmp_path / "train-00000", vocab_size=100) as writer:
        for ids in DOCUMENTS:
            writer.add(ids)
    return tmp_path / "train-00000"


def test_a_shard_reads_back_what_was_written(prefix):
    shard = token_store.Shard(prefix)

    assert shard.num_tokens == 20
    assert shard.document_sizes.tolist() == [5, 2, 13]
    assert shard.read(3, 6).tolist() == [3, 4, 5, 6, 7, 8]  # across two boundaries


def test_deepspeeds_own_class_reads_it_and_its_module_is_loaded_without_deepspeed(prefix):
    program = (
        "import sys; from pathlib import Path; from data.store import token_store; import numpy as np\n"
        f"shard = token_store.Shard(Path({str(prefix)!r}))\n"
        "assert 'deepspeed' not in sys.modules\n"
        "from deepspeed.runtime.data_pipeline.data_sampling.indexed_dataset import MMapIndexedDataset\n"
        f"theirs = MMapIndexedDataset({str(prefix)!r}, skip_warmup=True)\n"
        "assert [theirs[i].tolist() for i in range(len(theirs))] == [list(range(5)), list(range(5, 7)), list(range(7, 20))]\n"
        "assert theirs.doc_idx.tolist() == [0, 1, 2, 3]\n"
        f"assert token_store.Shard(Path({str(prefix)!r})).read(0, 20).tolist() == list(range(20))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_ids_outlive_the_shard_they_were_read_from(prefix):
    ids = token_store.Shard(prefix).read(0, 20)  # DeepSpeed's object is gone here, and its file unmapped

    assert ids.tolist() == list(range(20))


@pytest.mark.parametrize(("vocab_size", "dtype"), [(5000, np.uint16), (65536, np.uint16), (65537, np.uint32), (150_000, np.uint32)])
def test_the_vocabulary_decides_the_width_of_ids(tmp_path, vocab_size, dtype):
    with token_store.ShardWriter(tmp_path / "x", vocab_size) as writer:
        writer.add(np.array([0, vocab_size - 1]))

    shard = token_store.Shard(tmp_path / "x")

    assert shard.dtype == dtype
    assert shard.read(0, 2).tolist() == [0, vocab_size - 1]


def test_an_interrupted_shard_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), token_store.ShardWriter(tmp_path / "x", 100) as writer:  # noqa: PT012
        writer.add(np.arange(5))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_shard_without_documents_is_no_file(tmp_path):
    with token_store.ShardWriter(tmp_path / "x", 100):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("code", "dtype"), [(8, np.uint16), (4, np.int32), (6, np.uint16), (7, np.uint32)])
def test_stores_of_megatron_lm_gpt_neox_and_megatron_deepspeed_read_the_same(write_as_megatron, tmp_path, code, dtype):
    """Code 8 is uint16 to Megatron-LM and gpt-neox, uint64 to DeepSpeed, whose codes 6 and 7 are floats to them."""
    write_as_megatron(tmp_path / "theirs", [[1, 2, 3], [60000, 5], [6]], [0, 2, 3], code, dtype)

    shard = token_store.Shard(tmp_path / "theirs")

    assert shard.read(0, 6).tolist() == [1, 2, 3, 60000, 5, 6]
    assert shard.document_sizes.tolist() == [5, 1]  # two sequences are the first document


@pytest.mark.parametrize("damage", ["cut", "missing", "magic", "no index"])
def test_a_damaged_pair_is_refused_by_name(prefix, damage):
    ids, index = prefix.with_suffix(".bin"), prefix.with_suffix(".idx")
    if damage == "cut":
        ids.write_bytes(ids.read_bytes()[:-2])
    elif damage == "missing":
        ids.unlink()
    elif damage == "magic":
        index.write_bytes(b"x" + index.read_bytes()[1:])
    else:
        index.unlink()
    with pytest.raises(DataError, match="train-00000"):
        token_store.Shard(prefix)


@pytest.fixture
def closed(prefix):
    token_store.write_manifest(prefix.parent, {"rules": {"a": 1}})
    return prefix.parent


def test_one_flipped_bit_is_noticed(closed):
    token_store.verify(closed, token_store.read_manifest(closed))
    flip_bit(closed / "train-00000.bin", 17)

    with pytest.raises(DataError, match=r"train-00000\.bin was changed after it was written"):
        token_store.verify(closed, token_store.read_manifest(closed))


def test_a_truncated_file_is_noticed_without_hashing(closed):
    path = closed / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(DataError, match=r"train-00000\.bin has 39 bytes, wanted 40"):
        token_store.verify(closed, token_store.read_manifest(closed), max_hashed_bytes=0)


def test_a_missing_file_is_noticed(closed):
    (closed / "train-00000.idx").unlink()

    with pytest.raises(DataError, match=r"train-00000\.idx is missing"):
        token_store.verify(closed, token_store.read_manifest(closed))


def test_a_changed_manifest_is_noticed(closed):
    path = closed / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["rules"]["a"] = 2
    path.write_text(json.dumps(manifest), encoding="utf-8")

    with pytest.raises(DataError, match="its checksum does not fit"):
        token_store.read_manifest(closed)


def test_a_manifest_that_is_no_json_is_refused(closed):
    (closed / "manifest.json").write_text("{", encoding="utf-8")

    with pytest.raises(ValueError, match=r"unreadable .* Delete the folder and prepare the data again"):
        token_store.read_manifest(closed)


@pytest.mark.parametrize("option", ["--documents", "--sample", "--window"])
def test_inspect_refuses_a_negative_number(option, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        inspect([str(tmp_path), option, "-1"])
    assert f"{option} -1: it must be 0 or more" in capsys.readouterr().err
