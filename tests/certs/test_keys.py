"""Keys, pins and the files of private keys.

Covers what keys are accepted, that nothing private shows itself, pins as other tools compute
them, and private files: modes, owners, links, FIFOs, sizes, atomic replacement, and what is
left behind when a write fails.
"""

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from certs import keys
from certs.keys import (
    certificate_request,
    new_key,
    parse_pin,
    parse_private_key,
    parse_public_key,
    private_directory,
    private_pem,
    read_private,
    read_public,
    require_p256,
    spki_pin,
    write_private,
    write_public,
)

# -- Keys ----------------------------------------------------------------------------------


def test_a_key_survives_being_written_and_read() -> None:
    key = new_key()
    assert isinstance(key.curve, ec.SECP256R1)
    assert (
        parse_private_key(private_pem(key)).private_numbers() == key.private_numbers()
    )


def test_a_key_in_the_older_format_of_openssl_is_read() -> None:
    key = new_key()
    old = key.private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    )
    assert parse_private_key(old).private_numbers() == key.private_numbers()


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"nonsense",
        private_pem(new_key())[:-40],
        private_pem(new_key())[40:],
        new_key().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
        ),
    ],
)
def test_a_damaged_or_encrypted_key_is_refused_without_showing_it(pem: bytes) -> None:
    with pytest.raises(ValueError, match="damaged, cut short or encrypted") as caught:
        parse_private_key(pem)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
)
def test_only_p256_keys_are_accepted(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey,
) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    spki = key.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(ValueError, match="not an ECDSA key on P-256"):
        parse_private_key(pem)
    with pytest.raises(ValueError, match="not an ECDSA key on P-256"):
        parse_public_key(spki)
    with pytest.raises(ValueError, match="not an ECDSA key on P-256"):
        require_p256(key.public_key())


def test_a_public_key_survives_being_written_and_read() -> None:
    key = new_key().public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert parse_public_key(spki) == key
    with pytest.raises(ValueError, match="damaged"):
        parse_public_key(spki[:-1])


def test_private_bytes_show_themselves_nowhere() -> None:
    secret = private_pem(new_key())
    for shown in (repr(secret), str(secret), f"{secret}", f"{[secret]}"):
        assert "PRIVATE KEY" not in shown
        assert "not shown" in shown
    assert secret == bytes(secret)


def test_a_certificate_request_holds_nothing_but_the_key() -> None:
    key = new_key()
    request = x509.load_der_x509_csr(certificate_request(key))
    assert request.is_signature_valid
    assert request.public_key() == key.public_key()
    assert not request.subject.rdns and not list(request.extensions)


# -- Pins ----------------------------------------------------------------------------------


def test_a_pin_is_the_digest_of_the_public_key_info() -> None:
    key = new_key().public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert spki_pin(key) == "sha256:" + hashlib.sha256(spki).hexdigest()
    assert parse_pin(spki_pin(key)) == spki_pin(key)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 65,
        "sha256:" + "A" * 64,
        "sha1:" + "0" * 64,
        "0" * 64,
        "sha256:" + "0" * 64 + "\n",
    ],
)
def test_anything_else_is_no_pin(text: str) -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        parse_pin(text)


# -- Files ---------------------------------------------------------------------------------


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_file_is_for_one_account_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "key"
    before = os.umask(0)
    try:
        write_private(path, b"secret")
    finally:
        os.umask(before)
    assert mode_of(path) == 0o600
    assert read_private(path) == b"secret"
    assert "secret" not in repr(read_private(path))


def test_a_public_file_is_for_everybody_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "crt"
    before = os.umask(0o077)
    try:
        write_public(path, b"certificate")
    finally:
        os.umask(before)
    assert mode_of(path) == 0o644
    assert read_public(path) == b"certificate"


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_private(path, b"old" * 1000)
    path.chmod(0o644)
    write_private(path, b"new")
    assert read_private(path) == b"new"
    assert os.listdir(tmp_path) == ["key"]


def test_an_open_reader_keeps_the_old_content(tmp_path: Path) -> None:
    """Written in place, a reader could see half of each."""
    path = tmp_path / "key"
    write_private(path, b"old")
    with path.open("rb") as reader:
        write_private(path, b"new")
        assert reader.read() == b"old"


def test_a_file_that_is_there_wins_when_it_must_not_be_replaced(
    tmp_path: Path,
) -> None:
    path = tmp_path / "key"
    write_private(path, b"first", replace=False)
    with pytest.raises(FileExistsError):
        write_private(path, b"second", replace=False)
    assert read_private(path) == b"first"
    assert os.listdir(tmp_path) == ["key"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    write_private(path, b"old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_private(path, b"new")
    assert read_private(path) == b"old"
    assert os.listdir(tmp_path) == ["key"]


def test_data_and_name_are_on_the_disk_before_a_write_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        synced.append(
            "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        )
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_private(tmp_path / "key", b"secret")
    assert synced == ["file", "directory"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777])
def test_a_private_file_open_to_others_is_refused_with_the_remedy(
    tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "key"
    write_private(path, b"secret")
    path.chmod(mode)
    with pytest.raises(ValueError, match=rf"mode {mode:04o}.*chmod 600 {path}"):
        read_private(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_private_file_of_another_account_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_private(path, b"secret")
    os.chown(path, 12345, -1)
    with pytest.raises(ValueError, match=r"another account \(uid 12345"):
        read_private(path)


def test_a_link_is_neither_read_nor_written_through(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    write_private(real, b"untouched")
    link.symlink_to(real)
    for act in (
        lambda: read_private(link),
        lambda: read_public(link),
        lambda: write_private(link, b"x"),
        lambda: write_private(link, b"x", replace=False),
        lambda: write_public(link, b"x"),
    ):
        with pytest.raises(ValueError, match="symbolic link"):
            act()
    assert read_private(real) == b"untouched"
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_a_dangling_link_does_not_become_a_file_elsewhere(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="symbolic link"):
        write_private(link, b"secret")
    assert os.listdir(tmp_path) == ["link"]


def test_a_link_put_there_between_check_and_write_is_replaced_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "key"
    victim.write_bytes(b"untouched")
    path.symlink_to(victim)
    monkeypatch.setattr(Path, "is_symlink", lambda self: False)
    write_private(path, b"secret")
    monkeypatch.undo()
    assert victim.read_bytes() == b"untouched"
    assert not path.is_symlink() and read_private(path) == b"secret"


def test_a_fifo_in_the_files_place_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "key"
    os.mkfifo(path, 0o600)
    with pytest.raises(ValueError, match="not a plain file"):
        read_private(path)


def test_a_directory_in_the_files_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a plain file"):
        read_private(tmp_path)


def test_a_huge_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "MAX_FILE_BYTES", 10)
    path = tmp_path / "key"
    write_private(path, b"x" * 10)
    assert len(read_private(path)) == 10
    write_private(path, b"x" * 11)
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        read_private(path)


def test_a_missing_file_is_the_usual_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_private(tmp_path / "key")


def test_a_new_private_directory_is_for_one_account(tmp_path: Path) -> None:
    path = tmp_path / "state" / "ca"
    private_directory(path)
    assert mode_of(path) == 0o700
    private_directory(path)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o750])
def test_a_directory_that_others_may_only_read_is_fine(
    tmp_path: Path, mode: int
) -> None:
    tmp_path.chmod(mode)
    private_directory(tmp_path)
    assert mode_of(tmp_path) == mode


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o702, 0o1777])
def test_a_directory_that_others_may_write_to_is_refused_with_the_remedy(
    tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(ValueError, match=f"mode {mode:04o}.*chmod 700 {path}"):
        private_directory(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
def test_a_directory_of_another_account_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.mkdir(mode=0o700)
    os.chown(path, 12345, -1)
    with pytest.raises(ValueError, match=r"another account \(uid 12345"):
        private_directory(path)


def test_a_killed_writer_leaves_the_old_file_readable(tmp_path: Path) -> None:
    """The half-written copy is another file, which the next reader never looks at."""
    path = tmp_path / "key"
    write_private(path, b"old")
    program = (
        "import os, pathlib, sys; from certs import keys\n"
        "os.fsync = lambda descriptor: os._exit(9)\n"
        "keys.write_private(pathlib.Path(sys.argv[1]), b'new')"
    )
    python = [sys.executable, "-c", program, str(path)]
    died = subprocess.run(python, env={"PYTHONPATH": os.pathsep.join(sys.path)})
    assert died.returncode == 9
    assert read_private(path) == b"old"
