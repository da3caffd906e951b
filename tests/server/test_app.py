"""The routes, in this process, around a model that says what the test wants."""

import json
import time

import pytest
from starlette.testclient import TestClient
from support.scripted import NAME, ScriptedModel, service

from tqcli.server.app import make_app
from tqcli.server.body import MAX_BODY_BYTES

TEXT = "The function returns zero.\n"
ASK = {"model": NAME, "prompt": "The"}
CHAT = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def model(tokenizer):
    """Says TEXT again and again; token 5 ends an answer."""
    script = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    return ScriptedModel(script, len(tokenizer), eos=[5])


@pytest.fixture
def serve(tokenizer, model):
    clients = []

    def start(**settings) -> TestClient:
        made = service(model, tokenizer, **settings)
        client = TestClient(make_app(made), raise_server_exceptions=False)
        client.__enter__()
        clients.append((client, made))
        client.service = made
        return client

    yield start
    model.gate.set()
    for client, _ in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve):
    return serve()


def complete(client, **more):
    return client.post("/v1/completions", json=ASK | more)


def chat(client, **more):
    return client.post("/v1/chat/completions", json=CHAT | more)


def events(response) -> list:
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    data = [line.removeprefix("data: ") for line in lines]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def refused(response, status: int, parameter: str | None = None) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == parameter
    return error["message"]


class TestAnswers:
    def test_completion(self, client, model):
        found = complete(client, max_tokens=3).json()
        number = len(model.script)
        assert found["choices"][0] == {
            "index": 0, "text": "The function returns", "logprobs": None, "finish_reason": "length"
        }  # fmt: skip
        assert (found["object"], found["model"]) == ("text_completion", NAME)
        assert found["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
        assert complete(client).json()["usage"]["completion_tokens"] == 16
        assert complete(client, max_tokens=number).json()["choices"][0]["text"] == TEXT

    def test_chat_uses_the_template(self, client, model, tokenizer):
        found = chat(client, max_completion_tokens=2).json()
        assert found["choices"][0]["message"] == {"role": "assistant", "content": "The function", "refusal": None}
        assert found["object"] == "chat.completion"
        asked = tokenizer.decode(model.prompts)
        assert asked == "<bos><|turn>user\nHi<turn|>\n<|turn>model\n"
        messages = [{"role": "developer", "content": "A"}, {"role": "user", "content": [{"type": "text", "text": "B"}]}]
        chat(client, messages=messages, max_tokens=1)
        assert "<|turn>system\nA<turn|>" in tokenizer.decode(model.prompts)

    def test_a_prompt_of_tokens_is_taken_as_it_is(self, client, model):
        for prompt in ([7, 8, 9], [[7, 8, 9]]):
            assert complete(client, prompt=prompt, max_tokens=1).json()["usage"]["prompt_tokens"] == 3
            assert model.prompts == [7, 8, 9]

    def test_without_a_limit_it_goes_on_to_the_end_of_the_context(self, client):
        usage = chat(client).json()["usage"]
        assert usage["total_tokens"] == 64

    def test_the_models_own_limit(self, serve, model):
        model.generation_config.max_new_tokens = 5
        client = serve()
        assert chat(client).json()["usage"]["completion_tokens"] == 5
        assert chat(client, max_tokens=7).json()["usage"]["completion_tokens"] == 7

    @pytest.mark.parametrize("end", [5, 1])
    def test_tokens_that_end_an_answer(self, client, model, end):
        """The generation config's and the tokenizer's own."""
        model.script[2] = end
        found = complete(client).json()
        assert found["choices"][0]["finish_reason"] == "stop"
        assert found["choices"][0]["text"] == "The function"
        assert found["usage"]["completion_tokens"] == 3
        going_on = complete(client, ignore_eos=True, max_tokens=5).json()
        assert going_on["usage"]["completion_tokens"] == 5

    @pytest.mark.parametrize("stop", ["n returns", ["zzz", "n returns", "zero"], "n re"])
    def test_stop_strings_across_tokens(self, client, stop):
        found = complete(client, stop=stop).json()["choices"][0]
        assert (found["text"], found["finish_reason"]) == ("The functio", "stop")
        streamed = events(complete(client, stop=stop, stream=True))
        assert "".join(one["choices"][0]["text"] for one in streamed[:-1]) == "The functio"

    def test_generation_config_gives_the_defaults(self, serve, model):
        model.generation_config.top_k = 3
        model.generation_config.temperature = 0.5
        made = serve().service
        from tqcli.server.fields import CompletionRequest, parse_request

        sampling = made.generation(parse_request(CompletionRequest, dict(ASK)), (1,)).sampling
        assert (sampling.top_k, sampling.temperature) == (3, 0.5)
        asked = parse_request(CompletionRequest, ASK | {"top_k": 0, "temperature": 0})
        sampling = made.generation(asked, (1,)).sampling
        assert (sampling.top_k, sampling.temperature) == (0, 0)

    def test_log_probabilities(self, client):
        found = complete(client, max_tokens=2, logprobs=1).json()["choices"][0]["logprobs"]
        assert found["tokens"] == ["The", " function"]
        assert found["text_offset"] == [0, 3]
        assert found["token_logprobs"] == pytest.approx([0, 0], abs=1e-6)
        assert found["top_logprobs"][0] == {"The": pytest.approx(0, abs=1e-6)}
        content = chat(client, max_tokens=2, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
        assert [one["token"] for one in content] == ["The", " function"]
        assert content[1]["bytes"] == list(b" function")
        assert [len(one["top_logprobs"]) for one in content] == [2, 2]
        assert chat(client, max_tokens=2).json()["choices"][0]["logprobs"] is None


class TestStreams:
    def test_chat(self, client):
        response = chat(client, max_tokens=3, stream=True)
        assert response.headers["content-type"].startswith("text/event-stream")
        found = events(response)
        assert found[-1] == "[DONE]"
        assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(one["choices"][0]["delta"].get("content", "") for one in found[:-1])
        assert text == "The function returns"
        assert [one["choices"][0]["finish_reason"] for one in found[:-1]] == [None] * 4 + ["length"]
        assert len({one["id"] for one in found[:-1]}) == 1
        assert {one["object"] for one in found[:-1]} == {"chat.completion.chunk"}

    def test_usage(self, client):
        found = events(chat(client, max_tokens=3, stream=True, stream_options={"include_usage": True}))
        assert found[-2]["choices"] == []
        assert found[-2]["usage"] == {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}

    def test_log_probabilities(self, client):
        found = events(complete(client, max_tokens=3, stream=True, logprobs=0))
        tokens = [token for one in found[:-2] for token in one["choices"][0]["logprobs"]["tokens"]]
        assert tokens == ["The", " function", " returns"]

    def test_a_failure_half_way_is_an_error_and_no_end(self, client, model):
        model.fails = True
        found = events(chat(client, stream=True))
        assert found[-1]["error"]["type"] == "server_error"
        assert "roof" not in str(found)


class TestRefusals:
    def test_bodies(self, client):
        kind = {"Content-Type": "application/json"}
        assert "JSON" in refused(client.post("/v1/completions", content=b"{", headers=kind), 400)
        large = b'{"prompt": "' + b"x" * MAX_BODY_BYTES + b'"}'
        refused(client.post("/v1/completions", content=large, headers=kind), 413)
        pieces = iter([b"x" * (MAX_BODY_BYTES // 2)] * 3)
        refused(client.post("/v1/completions", content=pieces, headers=kind), 413)
        refused(client.post("/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"}), 415)

    @pytest.mark.parametrize(("field", "value"), [("n", 2), ("tools", [{}]), ("response_format", {"type": "x"})])
    def test_what_would_be_ignored(self, client, field, value):
        assert f"`{field}`" in refused(chat(client, **{field: value}), 400, field)

    def test_model(self, client):
        assert "`other`" in refused(complete(client, model="other"), 404, "model")
        assert complete(client, model="alias", max_tokens=1).json()["model"] == "alias"
        refused(client.get("/v1/models/other"), 404, "model")

    def test_lengths(self, client):
        assert "64" in refused(complete(client, prompt=[7] * 64), 400, "prompt")
        assert complete(client, prompt=[7] * 63, max_tokens=1).status_code == 200
        assert "leaves 4" in refused(complete(client, prompt=[7] * 60, max_tokens=5), 400, "max_tokens")
        long = [{"role": "user", "content": "word " * 100}]
        refused(chat(client, messages=long), 400, "messages")
        refused(chat(client, max_completion_tokens=500), 400, "max_completion_tokens")
        # The default of 16 is nobody's wish.
        assert complete(client, prompt=[7] * 60).json()["usage"]["completion_tokens"] == 4

    def test_prompts(self, client):
        refused(complete(client, prompt=""), 400, "prompt")
        refused(complete(client, prompt=["a", "b"]), 400, "prompt")
        refused(complete(client, prompt=[10**6]), 400, "prompt")

    def test_templates(self, serve, tokenizer, model):
        import copy

        plain = copy.deepcopy(tokenizer)
        plain.chat_template = None
        picky = copy.deepcopy(tokenizer)
        picky.chat_template = "{{ raise_exception('roles must alternate') }}"
        nosy = copy.deepcopy(tokenizer)
        nosy.chat_template = "{{ messages.__class__.__mro__ }}"
        for one, words in ((plain, "no chat template"), (picky, "roles must alternate"), (nosy, "unsafe")):
            with TestClient(make_app(service(model, one))) as client:
                assert words in refused(chat(client), 400, "messages")

    def test_paths_and_methods(self, client):
        refused(client.get("/v1/nothing"), 404)
        refused(client.get("/v1/completions"), 405)

    def test_failures_are_told_without_details(self, client, model):
        model.fails = True
        assert "roof" not in refused(complete(client), 500)
        model.fails = False
        assert complete(client).status_code == 200


class TestKey:
    def test_every_route_below_v1_asks_for_it(self, serve):
        client = serve(api_key="séc ret")
        for header in ({}, {"Authorization": "Bearer no"}, {"Authorization": "Basic séc ret".encode()}):
            assert refused(client.get("/v1/models", headers=header), 401)
            assert refused(client.post("/v1/completions", json=ASK, headers=header), 401)
        assert client.get("/health").status_code == 200

    @pytest.mark.parametrize("key", ["secret", "séc ret 日本"])
    def test_the_right_one(self, serve, key):
        client = serve(api_key=key)
        header = {"Authorization": f"Bearer {key}".encode()}
        assert client.get("/v1/models", headers=header).status_code == 200
        assert client.post("/v1/completions", json=ASK, headers=header).status_code == 200


class TestState:
    def test_models(self, client):
        cards = client.get("/v1/models").json()["data"]
        assert [card["id"] for card in cards] == [NAME, "alias"]
        assert cards[1] == client.get("/v1/models/alias").json()
        assert {card["max_model_len"] for card in cards} == {64}

    def test_metrics(self, client):
        complete(client, max_tokens=3)
        complete(client, n=2)
        response = client.get("/metrics")
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert 'tq_requests_total{finished_reason="length"} 1\n' in response.text
        assert "tq_generation_tokens_total 3\n" in response.text
        assert "tq_inter_token_latency_seconds_count 2\n" in response.text

    def test_health_ends_with_the_engine(self, client):
        assert client.get("/health").status_code == 200
        client.service.engine.refuse()
        assert client.get("/health").status_code == 503
        refused(complete(client), 503)


def test_a_full_queue(serve, model):
    """One is answered, one waits, the third is told when to come again; then all goes on."""
    from concurrent.futures import ThreadPoolExecutor

    client = serve(max_waiting=1)
    engine = client.service.engine
    model.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(complete, client)
        wait_until(lambda: engine.running == 1)
        second = pool.submit(complete, client)
        wait_until(lambda: engine.waiting == 1)
        third = complete(client)
        assert "waiting" in refused(third, 429)
        assert int(third.headers["retry-after"]) >= 1
        model.gate.set()
        assert first.result().status_code == second.result().status_code == 200
    assert complete(client).status_code == 200


def test_stopping_tells_who_waits_and_ends_what_runs(serve, model):
    from concurrent.futures import ThreadPoolExecutor

    client = serve()
    engine = client.service.engine
    model.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(complete, client)
        wait_until(lambda: engine.running == 1)
        waiting = pool.submit(complete, client)
        wait_until(lambda: engine.waiting == 1)
        engine.refuse()
        refused(waiting.result(), 503)
        engine.abandon()
        model.gate.set()
        refused(running.result(), 503)


def wait_until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
