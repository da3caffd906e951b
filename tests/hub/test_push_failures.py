"""Whatever the Hub or the network does, a push ends with one sentence and exit code 3, and nothing half published."""

from types import SimpleNamespace

import pytest
from huggingface_hub import constants, errors
from support.command import succeed, tq
from support.fake_hub import FakeRepository
from support.fake_hub_pushes import converted, copy_of, writable_hub

from tqcli.errors import MachineError
from tqcli.hub.failures import AnswerError, NetworkError
from tqcli.hub.push_failures import explain_push, push_errors, unwrapped


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("push"))


@pytest.fixture
def out(made, tmp_path):
    return copy_of(made, tmp_path / "out")


@pytest.fixture
def hub(tmp_path):
    with writable_hub(tmp_path) as hub:
        yield hub


def fails(*arguments, code=3):
    result = tq("push", *arguments)
    assert result.code == code, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("note:", "      "))]
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert "Traceback" not in result.stderr
    assert "hf_" not in (result.stdout + result.stderr).replace("hf_hub", "").replace("HF_", "")
    return result.stderr


def nothing_changed(hub, name="me/name"):
    return not hub.commits and set(hub.files(name) if name in hub.repositories else ()) <= {".gitattributes"}


def test_no_token(out, tmp_path):
    with writable_hub(tmp_path, token=None) as hub:
        said = fails(out, "me/name")
        assert said.startswith("error: not logged in to the Hub\n")
        assert "hf auth login" in said
        assert not hub.requests


def test_a_wrong_token(out, tmp_path):
    with writable_hub(tmp_path, token="hf_wrongwrong") as hub:
        assert "the Hub does not accept the token" in fails(out, "me/name")
        assert hub.requests[-1][1] == "/api/whoami-v2"
        assert not [method for method, *_ in hub.requests if method != "GET"]


def test_a_token_that_may_only_read(hub, out):
    hub.roles["hf_good"] = "read"
    assert "its token may only read" in fails(out, "me/name")
    assert nothing_changed(hub)


def test_who_cannot_sign_in_waits_for_no_verification(out, tmp_path, monkeypatch):
    monkeypatch.setattr("tqcli.verify.verify", lambda *arguments, **options: pytest.fail("verified first"))
    with writable_hub(tmp_path, token=None):
        fails(out, "me/name")


def test_anothers_namespace(hub, out):
    said = fails(out, "them/name")
    assert "this login may not write to `them/name`" in said
    assert 'under the namespace "them"' in said


def test_anothers_repository(hub, out):
    hub.repositories["them/name"] = FakeRepository()
    hub.repositories["them/name"].commit({})
    assert "this login may not write to `them/name`" in fails(out, "them/name")
    assert not hub.store


def test_anothers_private_repository(hub, out):
    hub.repositories["them/name"] = FakeRepository(private=True)
    hub.repositories["them/name"].commit({})
    assert "`them/name`" in fails(out, "them/name")


@pytest.mark.parametrize(
    "request_", ["GET /api/whoami-v2", "POST /api/repos", "GET /api/models/me/name", "POST /api/models/me/name/branch"]
)
def test_an_error_that_passes_is_not_noticed(hub, out, request_):
    hub.failures[request_] = 2
    succeed("push", out, "me/name", "--revision", "tq3")
    assert hub.failures[request_] == 0
    assert len(hub.commits) == 1


@pytest.mark.parametrize(
    "request_",
    ["GET /api/whoami-v2", "POST /api/repos", "GET /api/models/me/name", "POST /api/models/me/name/preupload",
     "POST /me/name.git", "PUT /upload", "POST /verify", "POST /api/models/me/name/commit"],
)  # fmt: skip
def test_an_error_that_stays(hub, out, request_):
    hub.failures[request_] = 1000
    assert "error: the Hub failed at `me/name`\n" in fails(out, "me/name")
    assert nothing_changed(hub)
    hub.failures.clear()
    succeed("push", out, "me/name")
    assert set(hub.uploads.values()) == {1}, "what was uploaded is not sent again"


@pytest.mark.parametrize("request_", ["GET /api/whoami-v2", "POST /api/repos", "PUT /upload", "POST /api/models"])
def test_a_connection_that_breaks(hub, out, request_):
    hub.failures[f"hang up on {request_}"] = 1000
    assert "error: the connection to the Hub broke\n" in fails(out, "me/name")
    assert nothing_changed(hub)


def test_going_on_after_a_connection_broke_in_the_middle(hub, out):
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    taken = []

    class Breaks(dict):
        """The store that takes two files, and then the line goes dead."""

        def __setitem__(self, digest, data):
            taken.append(digest)
            super().__setitem__(digest, data)
            if len(taken) == 2:
                hub.failures["hang up on PUT /upload"] = 1000

    hub.store = Breaks()
    said = fails(out, "me/name")
    assert "it goes on" in said
    assert nothing_changed(hub)
    hub.failures.clear()
    succeed("push", out, "me/name")
    assert set(hub.uploads.values()) == {1}
    assert len(hub.uploads) == len(shards) > 2


def test_no_network(out, tmp_path):
    with writable_hub(tmp_path) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        assert "error: the connection to the Hub broke\n" in fails(out, "me/name")
        assert not hub.requests


def test_offline(hub, out, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = fails(out, "me/name")
    assert "HF_HUB_OFFLINE" in said


def test_too_many_requests(hub, out):
    hub.refusals["GET /api/whoami-v2"] = (429, "slow down")
    assert "too many requests" in fails(out, "me/name")


def test_a_refused_card(hub, out):
    hub.refusals["POST /api/validate-yaml"] = (400, "bad metadata")
    assert "the Hub does not take what is pushed" in fails(out, "me/name")
    assert nothing_changed(hub)


def test_addresses_of_uploads_are_nowhere(hub, out):
    hub.failures["PUT /upload"] = 1000
    assert "/upload/" not in fails(out, "me/name")


def refusal(status, kind=errors.HfHubHTTPError):
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("at https://signed.example/?token=hf_abcdefgh", response=response, server_message="hf_abcdefgh no")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (refusal(401), "does not accept the token"),
        (refusal(402), "may not write"),
        (refusal(403), "may not write"),
        (refusal(403, errors.GatedRepoError), "is gated"),
        (refusal(404, errors.RepositoryNotFoundError), "cannot write to"),
        (refusal(404, errors.RevisionNotFoundError), "no revision"),
        (refusal(409), "changed while"),
        (refusal(412), "changed while"),
        (refusal(413), "the Hub failed"),
        (refusal(429), "too many requests"),
        (refusal(500), "the Hub failed"),
        (refusal(404, errors.RemoteEntryNotFoundError), "the Hub failed"),
        (errors.LocalTokenNotFoundError("x"), "not logged in"),
        (errors.OfflineModeIsEnabled("x"), "cannot be pushed to"),
        (errors.HFValidationError("x"), "does not take"),
        (AnswerError("cut"), "connection to the Hub broke"),
        (NetworkError("timed out"), "connection to the Hub broke"),
        (ValueError("bad card"), "does not take"),
        (OSError(13, "Permission denied"), "cannot push"),
    ],
)
def test_every_failure_has_its_sentence(error, message):
    found = explain_push(error, "me/name", "main")
    assert type(found) is MachineError
    assert message in found.what
    assert "signed.example" not in str(found)
    assert "hf_abcdefgh" not in str(found)


def test_what_is_behind_a_failed_transfer():
    def fail(cause):
        raise RuntimeError("Error while uploading") from cause

    for cause, kind in ((refusal(500), errors.HfHubHTTPError), (OSError(5, "x"), OSError), (None, AnswerError)):
        with pytest.raises(kind):
            unwrapped(lambda cause=cause: fail(cause))


def test_bugs_pass_through():
    with pytest.raises(KeyError), push_errors("me/name"):
        raise KeyError("a bug")


@pytest.mark.parametrize("status", [401, 403, 404])
def test_xet_cannot_begin(hub, out, monkeypatch, status, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.xet_folder = tmp_path
    hub.refusals["GET /api/models/me/name/xet-write-token"] = (status, "no")
    fails(out, "me/name")
    assert nothing_changed(hub)


def test_xet_cannot_write(hub, out, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.xet_folder = tmp_path / "a file"
    hub.xet_folder.write_text("")
    fails(out, "me/name")
    assert nothing_changed(hub)
