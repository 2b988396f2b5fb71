import json
import stat

import pytest

from mtrl.files import replace_atomically, write_json_atomic


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "summary.json"
    write_json_atomic(path, {"old": 1})
    write_json_atomic(path, {"success": {"reach-v3": 0.5}})
    assert json.loads(path.read_text()) == {"success": {"reach-v3": 0.5}}
    assert [child.name for child in tmp_path.iterdir()] == ["summary.json"]


def test_the_file_is_as_readable_as_any_other(tmp_path):
    write_json_atomic(tmp_path / "atomic", {})
    (tmp_path / "plain").write_text("")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("atomic", "plain")}
    assert len(modes) == 1


def test_a_failure_halfway_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_and_fail():
        with replace_atomically(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_refused_since_json_has_none(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(tmp_path / "file", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())
