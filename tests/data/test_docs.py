"""The examples of docs/data.md are good sections, and it names what is there."""

import json
import re

import pytest

from data.config import DataConfig
from ds_configs import build_section
from tests import ROOT

TEXT = (ROOT / "docs/data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```json\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_is_a_good_section(number):
    assert build_section(DataConfig, json.loads(EXAMPLES[number]), "data", "docs/data.md").seq_length > 0


def test_files_that_the_page_names_are_there():
    for path in re.findall(r"`((?:benchmarks|ds_configs|data)/[\w/]+\.\w+)`", TEXT):
        if not path.startswith("data/downloads"):
            assert (ROOT / path).exists(), path
