"""A path leads to the cluster of the connection or nowhere, in every encoding."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.http.paths import cluster_prefix, strip_prefix
from shared.http.status import Refusal
from tests.fakes.relaying import relayed
from tests.fakes.upstream import echo_heads

ALPHA = cluster_prefix("alpha")

TRICKS = [
    "/",
    "/api",
    "/clusters",
    "/clusters/",
    "/clusters/beta/api",
    "/clusters/alph/api",
    "/clusters/alphabet/api",
    "/clusters/alpha.beta/api",
    "/clusters/Alpha/api",
    "/CLUSTERS/alpha/api",
    "/clusters/alpha;x/api",
    "/clusters/alpha%00/api",
    "/clusters/alpha%2fapi",
    "/clusters/alpha%2Fapi",
    "/clusters/alpha%3fapi",
    "/clusters/%61lpha/api",
    "/clusters/alph%61/api",
    "/clusters%2falpha/api",
    "/%63lusters/alpha/api",
    "/clusters//alpha/api",
    "//clusters/alpha/api",
    "/./clusters/alpha/api",
    "/x/../clusters/alpha/api",
    "/clusters/./alpha/api",
    "/clusters/beta/../alpha/api",
    "/clusters/beta/%2e%2e/alpha/api",
    "/clusters/alpha/../beta/api",
    "/clusters/alpha/..",
    "/clusters/alpha/.",
    "/clusters/alpha/./api",
    "/clusters/alpha/../../api",
    "/clusters/alpha/api/../../beta",
    "/clusters/alpha/%2e%2e/beta",
    "/clusters/alpha/%2E%2E/beta",
    "/clusters/alpha/.%2e/beta",
    "/clusters/alpha/%2e./beta",
    "/clusters/alpha/%2e/api",
    "/clusters/alpha/..%2fbeta",
    "/clusters/alpha/x%2f..%2f..%2fbeta",
    "/clusters/alpha/x%2F%2e%2e%2F%2e%2e%2Fbeta",
    "/clusters/alpha/..%5cbeta",
    "/clusters/alpha/x%5C..%5Cbeta",
    "/clusters/alpha//beta",
    "/clusters/alpha//",
    "/clusters/alpha/..?x=/../",
]

KEPT = [
    ("/clusters/alpha", "/"),
    ("/clusters/alpha/", "/"),
    ("/clusters/alpha?timeout=1s", "/?timeout=1s"),
    ("/clusters/alpha/api/v1/pods", "/api/v1/pods"),
    ("/clusters/alpha/apis/?x=..%2f&y=/../z", "/apis/?x=..%2f&y=/../z"),
    ("/clusters/alpha/a%20b%2Fc%2fd", "/a%20b%2Fc%2fd"),
    ("/clusters/alpha/.well-known/x", "/.well-known/x"),
    ("/clusters/alpha/.../x..y/..z/w..", "/.../x..y/..z/w.."),
    ("/clusters/alpha/%252e%252e/x", "/%252e%252e/x"),
    ("/clusters/alpha/s/http:x:80/proxy/a//b", "/s/http:x:80/proxy/a//b"),
    ("/clusters/alpha/x:%2fy%", "/x:%2fy%"),
    ("/clusters/alpha/clusters/beta", "/clusters/beta"),
]


@pytest.mark.parametrize("path", TRICKS)
async def test_a_trick_is_refused_and_never_reaches_the_apiserver(path: str) -> None:
    async with relayed(echo_heads) as bench:
        bench.send(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path.encode())
        assert (await bench.answer())[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 404")
        # And again behind a good one, when the other fields are known.
        if not bench.stream.has_eof:
            bench.send(b"GET /clusters/alpha/x HTTP/1.1\r\nHost: h\r\n\r\n")
            await bench.answer()
            bench.send(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path.encode())
            assert (await bench.answer())[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 404")
        assert bench.received.count(b"HTTP/1.1\r\n") <= 1


@pytest.mark.parametrize(("path", "stripped"), KEPT)
def test_everything_else_is_kept_byte_for_byte(path: str, stripped: str) -> None:
    assert strip_prefix(path.encode(), ALPHA) == stripped.encode()


@settings(max_examples=2000)
@given(
    st.lists(
        st.sampled_from(
            [b"/", b"..", b".", b"%2e", b"%2E", b"%2f", b"%5c", b"clusters", b"alpha"]
            + [b"beta", b"a", b"?", b"%", b"%25"]
        ),
        max_size=14,
    )
)
def test_no_path_leads_out_of_its_cluster(parts: list[bytes]) -> None:
    """Resolved as eagerly as any reader could, what is sent stays below the root."""
    target = ALPHA + b"".join(parts)
    try:
        sent = strip_prefix(target, ALPHA)
    except Refusal:
        return
    assert target == ALPHA + sent or target == ALPHA + sent.removeprefix(b"/")
    path = sent.partition(b"?")[0].lower()
    for encoded, plain in ((b"%2e", b"."), (b"%2f", b"/"), (b"%5c", b"/")):
        path = path.replace(encoded, plain)
    assert not path.startswith(b"//") or b"%" in sent
    assert not {b".", b".."} & set(path.split(b"/"))
