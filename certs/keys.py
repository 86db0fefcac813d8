"""Keys, the pins of public ones, and the files that hold private ones.

All keys of the PKI are ECDSA on P-256: every TLS stack and every HSM has it, and one kind
leaves nothing to negotiate. A private file is written whole or not at all, is never a
symbolic link, and belongs to one account; when it does not, we stop and say so, because a
key that others could read is no longer ours alone.
"""

import errno
import hashlib
import os
import re
import secrets
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = [
    "PrivateBytes",
    "certificate_request",
    "new_key",
    "parse_pin",
    "parse_private_key",
    "parse_public_key",
    "private_directory",
    "private_pem",
    "read_private",
    "read_public",
    "require_p256",
    "spki_pin",
    "write_private",
    "write_public",
]

# Far more than a key, its certificate and a CA bundle take; a larger file is not one of ours.
MAX_FILE_BYTES = 1024 * 1024

_PIN = re.compile(r"sha256:[0-9a-f]{64}")


class PrivateBytes(bytes):
    """Bytes that show themselves to nobody by accident: log lines, errors, debuggers."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"PrivateBytes({len(self)} bytes, not shown)"

    __str__ = __repr__


# -- Keys ----------------------------------------------------------------------------------


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new private key."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> PrivateBytes:
    """The key as PKCS #8 PEM, not encrypted: for `write_private` and TLS contexts."""
    return PrivateBytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def parse_private_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read a private key from PEM.

    Raises:
        ValueError: If it is damaged, encrypted, or not on P-256. Its content is not shown.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # `from None`: a parser's error may quote what it read.
        raise ValueError("the private key is damaged, cut short or encrypted") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(
            "the private key is not an ECDSA key on P-256, as Tower's keys are"
        )
    require_p256(key.public_key())
    return key


def parse_public_key(spki_der: bytes) -> ec.EllipticCurvePublicKey:
    """Read a public key from its SubjectPublicKeyInfo in DER.

    Raises:
        ValueError: If it is damaged or not on P-256.
    """
    try:
        key = serialization.load_der_public_key(spki_der)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError("the public key is damaged") from error
    return require_p256(key)


def require_p256(public_key: object) -> ec.EllipticCurvePublicKey:
    """Narrow somebody's public key to the kind that we use.

    Raises:
        ValueError: If it is of another kind.
    """
    if isinstance(public_key, ec.EllipticCurvePublicKey) and isinstance(
        public_key.curve, ec.SECP256R1
    ):
        return public_key
    raise ValueError("the public key is not an ECDSA key on P-256, as Tower's keys are")


def certificate_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A CSR in DER. It is empty but for the key: what a certificate says, the CA decides."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


# -- Pins ----------------------------------------------------------------------------------


def spki_pin(public_key: ec.EllipticCurvePublicKey) -> str:
    """The pin of a public key: `sha256:` and the hex digest of its SubjectPublicKeyInfo."""
    spki = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return f"sha256:{hashlib.sha256(spki).hexdigest()}"


def parse_pin(text: str) -> str:
    """Check the shape of a pin.

    Raises:
        ValueError: If it is not `sha256:` and 64 lower-case hex digits.
    """
    if not _PIN.fullmatch(text):
        raise ValueError("a pin is `sha256:` and 64 hex digits in lower case")
    return text


# -- Files ---------------------------------------------------------------------------------


def private_directory(path: Path) -> None:
    """Make sure of a directory in which only this account can put files.

    Missing ones are made (0700). One that is there may be readable by others, as its
    files guard themselves; whoever may write to it could exchange them, though.

    Raises:
        ValueError: If another account could write to it; says what to do.
        OSError: If it cannot be made.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.stat()
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise ValueError(
            f"{path} can be written to by other accounts (mode {_octal(status)}): run "
            f"`chmod 700 {path}`, or use a directory inside it"
        )
    _require_own(path, status)


def write_private(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a file that only this account can read (0600): whole or not at all, and durable.

    With `replace=False` a file that is there already wins, also one that another process
    makes at the same moment.

    Raises:
        ValueError: If `path` is a symbolic link.
        FileExistsError: If it is there and `replace` is false.
        OSError: If it cannot be written; the old content is then untouched.
    """
    _write(path, data, mode=0o600, replace=replace)


def write_public(path: Path, data: bytes, *, replace: bool = True) -> None:
    """The same for what everybody may read (0644): certificates."""
    _write(path, data, mode=0o644, replace=replace)


def read_private(path: Path) -> PrivateBytes:
    """Read a file that `write_private` wrote.

    Not for mounted Kubernetes Secrets: those are symbolic links and readable by a group.

    Raises:
        ValueError: If it is a link, no plain file, too large, or not this account's alone;
            says what to do.
        OSError: If it cannot be read (FileNotFoundError when it is not there).
    """
    return PrivateBytes(_read(path, private=True))


def read_public(path: Path) -> bytes:
    """Read a plain file of bounded size that `write_public` wrote.

    Raises:
        ValueError: If it is a link, no plain file, or too large.
        OSError: If it cannot be read (FileNotFoundError when it is not there).
    """
    return _read(path, private=False)


def _read(path: Path, *, private: bool) -> bytes:
    try:
        # O_NONBLOCK: a FIFO in the file's place must not make us wait for its writer.
        descriptor = os.open(
            path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _link_error(path) from error
        raise
    try:
        # Of the descriptor, not of the path: what we check is what we read.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a plain file")
        if private:
            _require_private(path, status)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(
            f"{path} is larger than {MAX_FILE_BYTES} bytes: not one of Tower's files"
        )
    return data


def _require_private(path: Path, status: os.stat_result) -> None:
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ValueError(
            f"{path} is open to other accounts (mode {_octal(status)}): if none of them can "
            f"have read it, run `chmod 600 {path}` (in Kubernetes a volume's fsGroup opens "
            "files: leave it out); else replace the key in it"
        )
    _require_own(path, status)


def _require_own(path: Path, status: os.stat_result) -> None:
    # Root's files are fine: root could read ours anyway.
    if status.st_uid not in (os.geteuid(), 0):
        raise ValueError(
            f"{path} belongs to another account (uid {status.st_uid}, this is uid "
            f"{os.geteuid()}): run `chown {os.geteuid()} {path}`, or start as that account"
        )


def _write(path: Path, data: bytes, *, mode: int, replace: bool) -> None:
    # Renaming over a link would not follow it; but whoever made one meant another place.
    if path.is_symlink():
        raise _link_error(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        if replace:
            os.replace(temporary, path)
        else:
            # Unlike a rename, a link fails when the name is taken.
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    """Make the name durable too: after a power cut a file without one is lost."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link_error(path: Path) -> ValueError:
    return ValueError(
        f"{path} is a symbolic link, and keys are not kept behind links: put the file itself "
        "there, or give the path of its real directory"
    )


def _octal(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"
