"""Digests against published values, and against each other."""

from pathlib import Path

from tenfold.hashing import bytes_sha256, file_sha256, text_sha256

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, the example "abc"


def test_text_file_and_chunks_agree_on_the_published_value(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert text_sha256("abc") == ABC
    assert file_sha256(tmp_path / "abc") == file_sha256(str(tmp_path / "abc")) == ABC
    assert bytes_sha256([b"a", b"", memoryview(b"bc")]) == ABC
