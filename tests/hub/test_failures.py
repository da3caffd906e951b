from types import SimpleNamespace

import pytest
from huggingface_hub import errors

from tqcli.errors import InputError, MachineError
from tqcli.hub.failures import AnswerError, NetworkError, explain, hub_errors, is_transient, with_retries


def refusal(status, message="no", kind=errors.HfHubHTTPError, **headers):
    response = SimpleNamespace(status_code=status, headers=headers, request=None)
    return kind("text with https://signed.example/x", response=response, server_message=message)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (refusal(401), InputError, "does not accept the token"),
        (refusal(403, "you shall not pass"), InputError, "you shall not pass"),
        (refusal(429), MachineError, "too many requests"),
        (refusal(500), MachineError, "status 500"),
        (refusal(416), MachineError, "status 416"),
        (refusal(404, kind=errors.RemoteEntryNotFoundError), InputError, "does not hold that file"),
        (refusal(403, kind=errors.DisabledRepoError), InputError, "may not read"),
        (errors.HFValidationError("x"), InputError, "not a Hub id"),
        (errors.LocalTokenNotFoundError("x"), InputError, "not logged in"),
        (errors.OfflineModeIsEnabled("x"), MachineError, "HF_HUB_OFFLINE"),
        (errors.LocalEntryNotFoundError("x"), MachineError, "cannot be reached"),
        (AnswerError("cut"), MachineError, "cut"),
        (NetworkError("timed out"), MachineError, "cannot reach the Hub"),
        (NetworkError(""), MachineError, "HTTPError"),
        (PermissionError(13, "Permission denied"), MachineError, "Permission denied"),
        (TimeoutError("timed out"), MachineError, "timed out"),
    ],
)
def test_every_failure_has_its_sentence(error, kind, message):
    found = explain(error, "org/model", None)
    assert type(found) is kind
    assert message in str(found)
    assert "signed.example" not in str(found)


def test_what_the_server_says_is_kept_short_and_without_secrets():
    found = explain(refusal(403, "token hf_abcdefgh at\nhttps://x.example/?sig=1 " + "z" * 1000), "org/model", None)
    assert found.why.startswith("token ... at ... zzz")
    assert len(found.why) <= 300


def test_our_own_errors_and_bugs_pass_through():
    for error in (InputError("ours"), KeyError("a bug")):
        with pytest.raises(type(error)), hub_errors("org/model"):
            raise error


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_these_may_pass(status):
    assert is_transient(refusal(status))


@pytest.mark.parametrize("error", [refusal(401), refusal(404), refusal(416), ValueError(), OSError(28, "full")])
def test_these_will_not(error):
    assert not is_transient(error)


def test_waits_grow_and_follow_the_server_within_reason(monkeypatch):
    slept = []
    monkeypatch.setattr("tqcli.hub.failures.time.sleep", slept.append)
    answers = [
        refusal(500),
        refusal(429, **{"retry-after": "9"}),
        refusal(503, **{"retry-after": "99999"}),
        refusal(503, **{"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}),
    ]

    def call():
        if answers:
            raise answers.pop(0)
        return "done"

    assert with_retries(call, (1.0, 2.0, 4.0, 8.0)) == "done"
    assert slept == [1.0, 9.0, 60.0, 8.0]


def test_a_final_failure_is_not_repeated(monkeypatch):
    calls = []

    def call():
        calls.append(1)
        raise refusal(404)

    with pytest.raises(errors.HfHubHTTPError):
        with_retries(call, (1.0, 2.0))
    assert len(calls) == 1
