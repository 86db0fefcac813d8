"""Covered: which HTTP status is which kind of error, and what it says."""

import pytest

from tower_server.kube.errors import (
    Conflict,
    Expired,
    KubeError,
    NotFound,
    Rejected,
    Unreachable,
    error_of_status,
)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Rejected),
        (401, Rejected),
        (403, Rejected),
        (404, NotFound),
        (409, Conflict),
        (410, Expired),
        (422, Rejected),
        (429, Unreachable),
        (500, Unreachable),
        (503, Unreachable),
    ],
)
def test_each_status_is_one_kind(status: int, kind: type[KubeError]) -> None:
    error = error_of_status(status, "GET secrets/a", "because")
    assert type(error) is kind
    assert str(error) == f"GET secrets/a: {status} because"
