"""Small files that anybody may have written."""

import pytest

from ds_configs.files import object_or_nothing, read_object


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "\udcff"])
def test_what_is_no_object_is_refused_with_the_files_name_or_taken_for_nothing(text, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=r"a\.json: (unreadable|holds no JSON object)"):
        read_object(path)
    assert object_or_nothing(path) == {}
    assert read_object(tmp_path / "b.json") == {}
