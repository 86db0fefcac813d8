"""Join tokens: secrets that do not show themselves, and strings that are read whole or not.

Covers the round trip (property), every broken join string (property: no error repeats the
text), verifiers, and redaction.
"""

import base64
import pickle
import string
import traceback

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certs.names import parse_cluster_name, parse_host
from certs.tokens import (
    JoinSecret,
    JoinString,
    new_token,
    parse_token_id,
    signing_key_of,
    verifier_of,
)

PIN = "sha256:" + "0123456789abcdef" * 4
SECRET = "S3cretS3cretS3cretS3cretS3cretAA"
GOOD = f"tower+join://alpha:k7m2x9p4q8rt.{SECRET}@tower.example.org:8443?pin={PIN}"

# HKDF-SHA256 of the secret (info: "tower join token v1") as the seed of an Ed25519 key.
VERIFIER_OF_SECRET = "2895d94eb821817843e0aad19896475a3ccbd6d73e7ba03ab8d517f7bb8d0652"

LABELS = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
HOSTS = st.one_of(
    LABELS.map(lambda label: f"{label}.example.org"),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
).map(parse_host)
SECRETS = st.binary(min_size=20, max_size=64).map(
    lambda data: JoinSecret(base64.urlsafe_b64encode(data).decode().rstrip("="))
)
JOIN_STRINGS = st.builds(
    JoinString,
    cluster=LABELS.map(parse_cluster_name),
    host=HOSTS,
    port=st.integers(1, 65_535),
    token_id=st.from_regex(r"[a-z0-9]{4,32}", fullmatch=True).map(parse_token_id),
    secret=SECRETS,
    pin=st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True),
)


@given(JOIN_STRINGS)
def test_a_join_string_survives_being_printed_and_read(join: JoinString) -> None:
    text = join.format()
    assert JoinString.parse(text) == join
    assert JoinString.parse(f"  {text}\r\n") == join
    assert text.isascii() and len(text.split()) == 1


def test_a_join_string_looks_as_documented() -> None:
    join = JoinString.parse(GOOD)
    assert (join.cluster, join.host, join.port) == ("alpha", "tower.example.org", 8443)
    assert (join.token_id, join.pin) == ("k7m2x9p4q8rt", PIN)
    assert join.secret.reveal() == SECRET
    assert join.format() == GOOD


def test_an_ipv6_address_stands_in_brackets() -> None:
    join = JoinString.parse(GOOD.replace("tower.example.org", "[::1]"))
    assert join.host == "::1"
    assert "@[::1]:8443?" in join.format()


def test_only_format_and_reveal_show_the_secret() -> None:
    join = JoinString.parse(GOOD)
    shown = f"{join} {join!r} {join.secret} {join.secret!r} {[join]} {vars(join)}"
    assert SECRET not in shown
    assert "not shown" in shown
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(join)


def test_a_secret_can_be_compared_but_not_with_text() -> None:
    secret = JoinSecret(SECRET)
    assert secret == JoinSecret(SECRET) and hash(secret) == hash(JoinSecret(SECRET))
    assert secret != SECRET and secret != new_token()[1]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is empty: copy the whole line"),
        ("  \n", "is empty"),
        (f"{GOOD}\n{GOOD}", "more than one word"),
        (f"Join string: {GOOD}", "more than one word"),
        (f"'{GOOD}'", "does not begin with tower"),
        ("https://tower.example.org", "does not begin with tower"),
        (GOOD[: GOOD.index("?")], "cut short, its pin is missing"),
        (GOOD[:30], "cut short, its pin is missing"),
        (GOOD[:-1], "pin in the join string is damaged"),
        (GOOD + "0", "pin in the join string is damaged"),
        (GOOD + "&x=1", "the join string is damaged"),
        (GOOD.replace("alpha", "Alpha"), "cluster's name in"),
        (GOOD.replace("alpha:", ":"), "cluster's name in"),
        (GOOD.replace("k7m2x9p4q8rt", "K7"), "token's id in"),
        (GOOD.replace(SECRET, SECRET[:-8]), "secret in the join string is damaged"),
        (GOOD.replace(SECRET, ""), "secret in the join string is damaged"),
        (GOOD.replace(SECRET, SECRET * 4), "secret in the join string is damaged"),
        (
            GOOD.replace(SECRET, SECRET[:-1] + "="),
            "secret in the join string is damaged",
        ),
        (GOOD.replace("tower.example.org", ""), "address is not HOST:PORT"),
        (GOOD.replace("tower.example.org", "::1"), "address is not HOST:PORT"),
        (GOOD.replace("tower.example.org", "[tower]"), "address is not HOST:PORT"),
        (GOOD.replace("tower.example.org", "[::1::]"), "server's host in"),
        (GOOD.replace("tower.example.org", "-"), "server's host in"),
        (GOOD.replace("tower.example.org", "a_?b"), "the join string is damaged"),
        (GOOD.replace(":8443", ""), "address is not HOST:PORT"),
        (GOOD.replace(":8443", ":0"), "address is not HOST:PORT"),
        (GOOD.replace(":8443", ":65536"), "address is not HOST:PORT"),
        (GOOD.replace(":8443", ":08443"), "address is not HOST:PORT"),
        (GOOD.replace(":8443", ":٨٤٤٣"), "address is not HOST:PORT"),
        (GOOD + "0" * 2000, "the join string is damaged"),
    ],
)
def test_a_broken_join_string_is_refused_with_what_is_wrong(
    text: str, fault: str
) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        JoinString.parse(text)
    assert SECRET[:8] not in str(caught.value)


@given(
    st.integers(0, len(GOOD)),
    st.integers(0, 40),
    st.text(string.printable + "ä\u202e", max_size=5),
)
@example(0, 0, "x")
def test_whatever_is_broken_no_error_shows_a_part_of_the_secret(
    start: int, length: int, instead: str
) -> None:
    text = GOOD[:start] + instead + GOOD[start + length :]
    try:
        join = JoinString.parse(text)
    except ValueError as error:
        chain = [error, error.__cause__]
        if not error.__suppress_context__:
            chain.append(error.__context__)
        assert not any("S3cret" in str(link) for link in chain if link)
    else:
        assert JoinString.parse(join.format()) == join


def test_a_secret_in_a_wrong_place_is_not_shown_in_a_traceback_either() -> None:
    for text in (GOOD.replace("alpha", SECRET), GOOD.replace("tower.", SECRET + "!")):
        with pytest.raises(ValueError, match="copy the whole line") as caught:
            JoinString.parse(text)
        shown = "".join(traceback.format_exception(caught.value, chain=True))
        assert "S3cret" not in shown.replace(__file__, "")


def test_new_tokens_are_long_enough_and_never_the_same() -> None:
    tokens = [new_token() for _ in range(50)]
    assert len({token_id for token_id, _ in tokens}) == 50
    assert len({secret.reveal() for _, secret in tokens}) == 50
    for token_id, secret in tokens:
        assert parse_token_id(token_id) == token_id
        assert len(secret.reveal()) * 6 >= 160


@pytest.mark.parametrize("text", ["", "abc", "x" * 33, "ABCD", "ab.cd", "abcd\n"])
def test_anything_else_is_no_token_id(text: str) -> None:
    with pytest.raises(ValueError, match="4 to 32 lower-case"):
        parse_token_id(text)


def test_a_verifier_is_a_public_key_that_depends_on_the_whole_secret() -> None:
    secret = JoinSecret(SECRET)
    assert verifier_of(secret) == signing_key_of(secret).public_key().public_bytes_raw()
    assert len(verifier_of(secret)) == 32
    other = JoinSecret("T" + SECRET[1:])
    assert verifier_of(other) != verifier_of(secret)


def test_a_verifier_stays_the_same_between_releases() -> None:
    """Stores outlive programs: another derivation would void every printed join string."""
    assert verifier_of(JoinSecret(SECRET)).hex() == VERIFIER_OF_SECRET
