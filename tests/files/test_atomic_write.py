import os
from pathlib import Path

import pytest

from sdslab.errors import UserError
from sdslab.files.atomic_write import atomic_write, check_writable


def test_the_file_appears_whole(tmp_path: Path):
    path = tmp_path / "new" / "table.csv"
    with atomic_write(path) as temporary:
        temporary.write_text("a,b\n")
        assert not path.exists()
    assert path.read_text() == "a,b\n"
    assert [file.name for file in path.parent.iterdir()] == ["table.csv"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text(f"half {1 / 0}")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]


def test_a_full_disk_is_a_user_error(tmp_path: Path):
    with pytest.raises(UserError, match="No space left"), atomic_write(tmp_path / "x"):
        raise OSError(28, "No space left on device")


def test_a_file_is_no_output_folder(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out must be a folder that can be written"):
        check_writable(tmp_path / "file" / "figures")


def test_a_folder_that_can_be_made_is_not_made_yet(tmp_path: Path):
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
