"""Which paths are the gateway's: forms, tricks, and that both readers agree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.http.status import Refusal
from tests.attacks.test_path_tricks import KEPT, TRICKS
from tower_server.gateway.routes import Route, begins_with_route, route_of


def line(target: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target


@pytest.mark.parametrize(
    ("target", "goes_as"),
    [
        ("/clusters/alpha/api", "/clusters/alpha/api"),
        ("/clusters/alpha", "/clusters/alpha"),
        ("/clusters/alpha?a=b", "/clusters/alpha?a=b"),
        ("/api/clusters/alpha/v1", "/clusters/alpha/api/v1"),
        ("/apis/clusters/alpha/apps/v1?x", "/clusters/alpha/apis/apps/v1?x"),
        ("/kapis/clusters/alpha?x=y", "/clusters/alpha/kapis?x=y"),
        ("/apis/clusters/alpha", "/clusters/alpha/apis"),
        *((path, path) for path, _ in KEPT),
    ],
)
def test_a_route_goes_to_its_cluster_as_it_came(target: str, goes_as: str) -> None:
    assert route_of(target.encode()) == Route("alpha", goes_as.encode())  # type: ignore[arg-type]
    assert begins_with_route(line(target.encode()))


@pytest.mark.parametrize(
    "target",
    [
        *("/", "/healthz", "/tunnel", "/join", "/clusterss", "/clusters.x"),
        *("/api/v1/clusters/alpha", "/apis/x/clusters/alpha", "/capi/clusters/alpha"),
        *("//clusters/alpha", "/x/clusters/alpha", "/CLUSTERS/alpha"),
        *("/%63lusters/alpha", "/clusters%2falpha", "/./clusters/alpha"),
    ],
)
def test_other_paths_are_not_ours(target: str) -> None:
    assert route_of(target.encode()) is None
    assert not begins_with_route(line(target.encode()))


@pytest.mark.parametrize(
    "target",
    [
        *("/clusters", "/clusters/", "/clusters?x", "/clusters//alpha"),
        *("/clusters/Alpha", "/clusters/al%70ha/x", "/clusters/alpha%2fx"),
        *("/clusters/-/x", "/clusters/alpha;x/y", "/clusters/../x", "/clusters/./x"),
        *("/clusters/\xff/x", "/clusters/" + "a" * 64 + "/x", "/clusters/alpha..b/x"),
        *("/api/clusters", "/apis/clusters/", "/kapis/clusters/%2e%2e/x"),
        *("/clusters/alpha/../beta/x", "/api/clusters/alpha/../../beta/x"),
        *("/apis/clusters/alpha/%2e%2e/%2e%2e/beta", "/clusters/alpha//x"),
    ],
)
def test_what_names_no_cluster_or_leads_out_of_it_is_refused(target: str) -> None:
    with pytest.raises(Refusal) as refused:
        route_of(target.encode("latin-1"))
    assert refused.value.code in (400, 404)


@pytest.mark.parametrize("path", TRICKS)
def test_no_trick_leads_to_another_cluster(path: str) -> None:
    try:
        route = route_of(path.encode())
    except Refusal:
        return
    # What is left names its cluster literally; the agent of that one judges it again.
    assert route is None or path.startswith(f"/clusters/{route.cluster}")


@given(
    st.lists(
        st.sampled_from(
            [b"/", b"clusters", b"api", b"apis", b"kapis", b"alpha", b"..", b".", b"?"]
            + [b"%2f", b"%2e", b"-", b"x", b" "]
        ),
        max_size=12,
    )
)
def test_both_readers_of_a_path_agree(parts: list[bytes]) -> None:
    target = b"/" + b"".join(parts)
    if b" " in target:
        return  # no head has such a target
    try:
        is_ours = route_of(target) is not None
    except Refusal:
        is_ours = True
    assert begins_with_route(line(target)) is is_ours
