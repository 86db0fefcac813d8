"""The certificate that a direct member's name is served with.

Covered: its name and role, when it is due, that it is new each time and opens no tunnel.
"""

from certs.names import host_name
from tests.certs.zone import ALPHA, NOW, ZONE
from tests.fakes.dialling import the_zone
from tower_server.membership import ClusterRecord, agent_is_current
from tower_server.serving import new_serving_certificate


def test_it_is_for_the_clusters_name_and_made_anew() -> None:
    authority = the_zone().authority
    first, second = (new_serving_certificate(authority, ALPHA, NOW) for _ in "12")
    assert first.zone == ZONE and host_name(ALPHA, ZONE) == f"alpha.{ZONE}"
    assert NOW < first.renewal_due_at < first.not_after
    assert first.serial != second.serial and first.key_pin != second.key_pin


def test_no_record_says_that_it_is_current() -> None:
    made = new_serving_certificate(the_zone().authority, ALPHA, NOW)
    record = ClusterRecord(name=ALPHA, member_uid="uid", joined_at=NOW)
    assert not agent_is_current(record, key_pin=made.key_pin)
