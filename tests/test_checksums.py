"""The checksum of a file."""

import hashlib

from engine import files as checksums


def test_all_blocks_of_a_file_count(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checksums, 'BLOCK_BYTES', 3)
    for content in (b'', b'abc', b'abcabcd'):
        (tmp_path / 'a').write_bytes(content)
        assert checksums.sha256(tmp_path / 'a') == hashlib.sha256(content).hexdigest()
