"""The start of the quickstart on a processor without bf16 instructions, which a newer one can play (tests/README.md says how far)."""

import os
import re
import sys

import pytest

from tests import processes

# oneDNN then takes no kernel beyond AVX2, and torch none of its own; MKL's fp32 products stay as fast as they are.
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
RATIO = "from model.hardware.precision import measure_products as m; s = m(); print(s.fp32 / s.bf16)"


@pytest.fixture(scope="module")
def older_processor(root):
    """The environment of one; skipped where the two variables have no effect, so that the test would prove nothing."""
    environment = {**os.environ, **AVX2, "OMP_NUM_THREADS": "1"}
    ratio = float(processes.run([sys.executable, "-c", RATIO], cwd=root, env=environment).stdout)
    if ratio < 4:
        pytest.skip(f"this processor cannot play an older one: its bf16 products take {ratio:.1f} times as long as fp32's, whatever is set")
    return environment


@pytest.mark.distributed
@pytest.mark.network
def test_the_quickstart_starts_in_fp32_and_says_why(root, older_processor, tmp_path):
    overrides = ["run.name=older", f"run.directory={tmp_path}", "training.steps=2", "training.eval_batches=1", "training.sample_tokens=0"]
    done = processes.run(["./run_pretrain.sh", "ds_configs/quickstart.json", *overrides], cwd=root, env=older_processor)
    assert done.returncode == 0, done.stderr
    said = re.search(r"precision: fp32, because 256 x 256 products run at ([\d.]+) GFLOP/s in bf16 and ([\d.]+) in fp32", done.stderr)
    assert said, done.stderr
    assert float(said[1]) * 4 < float(said[2])
    assert "step 2/2 | loss 8." in done.stderr
    shares = [int(share) for share in re.findall(r"\| (\d+)% MFU", done.stderr)]
    assert shares, done.stderr
    assert all(0 < share <= 100 for share in shares)
    # The text it writes at the end is in the precision of this machine too.
    assert done.stderr.count("precision: fp32") == 2
    manifest = next((tmp_path / "older/checkpoints").glob("*/manifest.json")).read_text(encoding="utf-8")
    assert '"precision": "fp32"' in manifest
