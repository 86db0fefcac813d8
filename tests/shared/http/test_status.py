"""Status bodies and the answers that carry them."""

import json

import pytest

from shared.http.status import Refusal, status_body


@pytest.mark.parametrize(
    "code", [400, 401, 403, 404, 405, 408, 417, 431, 501, 502, 503, 505]
)
def test_a_body_is_a_status_as_kubernetes_makes_it(code: int) -> None:
    status = json.loads(status_body(code, 'a "message"'))
    assert status["kind"] == "Status" and status["apiVersion"] == "v1"
    assert status["status"] == "Failure" and status["code"] == code
    assert status["message"] == 'a "message"'


def test_an_answer_is_whole_http() -> None:
    refusal = Refusal(code=503, message="wait", retry_after_seconds=3)
    head, _, body = refusal.answer(close=True).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 503 Service Unavailable"
    assert b"Retry-After: 3" in lines and b"Connection: close" in lines
    assert b"Content-Length: %d" % len(body) in lines
    assert json.loads(body)["details"] == {"retryAfterSeconds": 3}


def test_an_answer_to_head_has_no_body_and_says_how_long_it_would_be() -> None:
    refusal = Refusal(code=404, message="no")
    answer = refusal.answer(close=False, without_body=True)
    assert answer.endswith(b"\r\n\r\n") and b"Connection" not in answer
    assert b"Content-Length: 0" not in answer


def test_no_message_can_break_out_of_the_body() -> None:
    answer = Refusal(code=400, message="x\r\n\r\nHTTP/1.1 200 OK").answer(close=True)
    assert answer.count(b"\r\n\r\n") == 1
