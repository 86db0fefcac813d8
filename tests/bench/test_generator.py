"""Both load generators: every workload in each, and each against the other's upstream.

The aspects: the same flags, bytes and JSON; what an agent asks of a member; the
relay's delay and rate (Go only).
"""

import json
import shutil
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.generator import Endpoint, Generator, MeasurementFailed, find_generator
from bench.processes import Processes
from bench.site import MEMBER_UID, Site, clean_environment, open_site
from bench.workloads import Face, Kind, Link, Workload

SECONDS = 0.1
needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="needs Go")
LANGUAGES = ["python", pytest.param("go", marks=needs_go)]


def generator_in(language: str) -> Generator:
    generator, _ = find_generator(language, clean_environment())
    return generator


@pytest.fixture(scope="module", params=LANGUAGES)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("bench")
    with Processes(directory, clean_environment()) as processes:
        yield open_site(directory, processes, generator_in(request.param))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("face", list(Face))
@pytest.mark.parametrize("kind", [Kind.REQUEST, Kind.CONNECT, Kind.DOWNLOAD])
def test_every_client_measures_every_upstream(
    site: Site, language: str, face: Face, kind: Kind
) -> None:
    workload = Workload(name="w", kind=kind, workers=2)
    report = generator_in(language).measure(
        workload, site.upstream(face), seconds=SECONDS, warmup_seconds=0.02
    )
    assert report["seconds"] == pytest.approx(SECONDS, rel=1)
    if kind is Kind.DOWNLOAD:
        assert report["bytes_total"] >= report["bytes"] > 0
    else:
        assert report["operations_total"] >= report["operations"] > 0
        assert 0 < report["p50_ms"] <= report["p99_ms"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_uploads_and_mixed_loads_are_raw(site: Site, language: str) -> None:
    generator, upstream = generator_in(language), site.upstream(Face.RAW)
    uploads = Workload(name="w", kind=Kind.UPLOAD)
    # An upload counts whole mebibytes: a busy machine needs a moment for the first.
    report = generator.measure(uploads, upstream, seconds=0.5, warmup_seconds=0)
    assert report["bytes"] >= 1 << 20
    beside = Workload(name="w", kind=Kind.BESIDE, workers=2)
    report = generator.measure(beside, upstream, seconds=0.3, warmup_seconds=0)
    assert report["operations"] > 0 and report["bytes"] > 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_upstream_that_is_not_there_is_an_error_and_no_number(language: str) -> None:
    with pytest.raises(MeasurementFailed, match="[Rr]efused|Connect call failed"):
        generator_in(language).measure(
            Workload(name="w"),
            Endpoint(address="127.0.0.1:1"),
            seconds=SECONDS,
            warmup_seconds=0,
        )


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_generator_leaves_the_machine(language: str) -> None:
    with pytest.raises(MeasurementFailed, match="not a loopback address"):
        generator_in(language).measure(
            Workload(name="w"),
            Endpoint(address="192.0.2.1:80"),
            seconds=SECONDS,
            warmup_seconds=0,
        )


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_streams_stay_until_they_are_stopped(site: Site, language: str) -> None:
    workload = Workload(name="w", kind=Kind.HOLD, workers=20)
    holder = generator_in(language).hold(
        site.processes, workload, site.upstream(Face.RAW)
    )
    assert holder.alive()
    site.processes.stop(holder)
    assert not holder.alive()


def test_the_upstream_plays_a_member(site: Site) -> None:
    def ask(path: str, body: dict[str, object] | None = None) -> dict[str, object]:
        data = None if body is None else json.dumps(body).encode()
        context = ssl.create_default_context(cafile=str(site.certificates.ca))
        url = f"https://{site.https_address}{path}"
        request = urllib.request.Request(url, data, {"Connection": "close"})
        with urllib.request.urlopen(request, context=context, timeout=10) as response:
            answer: dict[str, object] = json.loads(response.read())
            return answer

    assert ask("/version")["major"] == "1"
    namespace = ask("/api/v1/namespaces/kube-system")
    assert isinstance(namespace["metadata"], dict)
    assert namespace["metadata"]["uid"] == MEMBER_UID
    review = ask(
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        {
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"verb": "get"}},
        },
    )
    assert review["kind"] == "SelfSubjectAccessReview"
    assert isinstance(review["status"], dict) and review["status"]["allowed"] is True


@needs_go
def test_the_relay_adds_its_round_trip_and_keeps_its_rate(tmp_path: Path) -> None:
    generator = generator_in("go")
    link = Link(name="l", round_trip_ms=40, rate_mbit=80, queue_bytes=100_000)
    with Processes(tmp_path, clean_environment()) as processes:
        site = open_site(tmp_path, processes, generator)
        there = Endpoint(address=site.behind(link, "l", site.raw_address))
        opening = Workload(name="w", kind=Kind.CONNECT)
        report = generator.measure(opening, there, seconds=0.4, warmup_seconds=0)
        # A link may be late, never early.
        assert report["p50_ms"] >= 40
        download = Workload(name="w", kind=Kind.DOWNLOAD, workers=2)
        report = generator.measure(download, there, seconds=0.5, warmup_seconds=0.3)
        # Both connections share the wire's 10 MB/s; a tenth for the window's edges.
        assert 0 < report["bytes"] / report["seconds"] <= 11e6
