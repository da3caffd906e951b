"""The server as a process: OpenAI's own client, a client that leaves, a full queue, signals."""

import json
import signal
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2
import openai
import pytest
from support.command import succeed
from support.server_process import ServerProcess, running

from .conftest import TINY

pytest.importorskip("transformers", minversion="5.18")
pytestmark = pytest.mark.slow

KEY = "correct horse"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "What does the kernel do?"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The trained checkpoint, converted."""
    out = tmp_path_factory.mktemp("converted") / "tiny"
    succeed("convert", TINY, out)
    return out


@pytest.fixture(scope="module")
def server(folder):
    with running(folder, "--api-key", KEY, "--max-model-len", "512", "--activations", "float") as found:
        yield found


@pytest.fixture(scope="module")
def slow(folder):
    with running(folder, "--max-waiting", "1", slow=True) as found:
        yield found


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0)


def metric(root: str, name: str) -> float:
    lines = httpx2.get(f"{root}/metrics").text.splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + " ")), 0.0)


def wait_until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


class TestOpenAi:
    def test_models(self, client):
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").max_model_len == 512

    def test_chat_whole_and_streamed_are_the_same(self, client):
        asked = CHAT | {"max_tokens": 24, "seed": 7, "temperature": 0.8, "top_p": 0.9}
        whole = client.chat.completions.create(**asked)
        assert whole.usage.completion_tokens <= 24
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason

    def test_completion_is_what_the_model_generates(self, client, folder):
        import torch

        import tqcli

        model, tokenizer = tqcli.load(folder)
        ids = tokenizer("The function returns", return_tensors="pt")
        expected = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
        found = client.completions.create(
            model="tiny", prompt="The function returns", max_tokens=12, temperature=0, logprobs=3
        )
        assert found.choices[0].text == tokenizer.decode(expected)
        with torch.no_grad():
            logits = model(**ids).logits[0, -1].float()
        best = torch.log_softmax(logits, -1).topk(3)
        assert list(found.choices[0].logprobs.top_logprobs[0].values()) == pytest.approx(best.values.tolist(), abs=0.05)

    def test_stop(self, client):
        free = client.completions.create(model="tiny", prompt="The function returns", max_tokens=24, temperature=0)
        stop = free.choices[0].text[5:9]
        found = client.completions.create(
            model="tiny", prompt="The function returns", max_tokens=24, temperature=0, stop=stop
        )
        assert found.choices[0].text == free.choices[0].text[: free.choices[0].text.index(stop)]
        assert found.choices[0].finish_reason == "stop"

    def test_refusals_are_its_exceptions(self, client, server):
        with pytest.raises(openai.BadRequestError, match="`n`"):
            client.chat.completions.create(**CHAT, n=2)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**CHAT | {"model": "gpt"})
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=server.url, api_key="wrong").models.list()
        with pytest.raises(openai.BadRequestError, match="512"):
            client.completions.create(model="tiny", prompt="word " * 600)

    def test_the_asynchronous_client(self, server):
        import asyncio

        async def ask() -> list[str]:
            async with openai.AsyncOpenAI(base_url=server.url, api_key=KEY) as client:
                asked = (client.chat.completions.create(**CHAT, max_tokens=4, temperature=0) for _ in range(4))
                return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

        assert len(set(asyncio.run(ask()))) == 1

    def test_nobody_without_the_key_but_for_health_and_metrics(self, server):
        assert httpx2.get(f"{server.url}/models").status_code == 401
        assert httpx2.get(f"{server.root}/health").status_code == 200
        assert httpx2.get(f"{server.root}/metrics").status_code == 200


class TestLeaving:
    """Whoever leaves gives the model back within a few tokens."""

    @pytest.mark.parametrize("stream", [True, False])
    def test_a_client_that_leaves_while_it_is_answered(self, slow, stream):
        cancelled = 'tq_requests_total{finished_reason="cancelled"}'
        before = metric(slow.root, cancelled)
        written = metric(slow.root, "tq_generation_tokens_total")
        with left_alone(slow, CHAT | {"max_tokens": 2000, "ignore_eos": True, "stream": stream}):
            wait_until(lambda: metric(slow.root, "tq_num_requests_running") == 1)
        wait_until(lambda: metric(slow.root, cancelled) == before + 1, seconds=10)
        assert metric(slow.root, "tq_num_requests_running") == 0
        assert metric(slow.root, "tq_generation_tokens_total") - written < 1000

    def test_a_full_queue_and_a_client_that_leaves_it(self, slow):
        body = CHAT | {"max_tokens": 2000, "ignore_eos": True}
        with left_alone(slow, body):
            wait_until(lambda: metric(slow.root, "tq_num_requests_running") == 1)
            with left_alone(slow, body):
                wait_until(lambda: metric(slow.root, "tq_num_requests_waiting") == 1)
                refused = httpx2.post(f"{slow.url}/chat/completions", json=body)
                assert refused.status_code == 429
                assert 1 <= int(refused.headers["retry-after"]) <= 60
            wait_until(lambda: metric(slow.root, "tq_num_requests_waiting") == 0)
        wait_until(lambda: metric(slow.root, "tq_num_requests_running") == 0)


@contextmanager
def left_alone(server, body):
    """A request whose client goes away at the end of the block, without a word."""
    raw = json.dumps(body).encode()
    host, port = server.root.removeprefix("http://").split(":")
    head = ("POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json",
            f"Content-Length: {len(raw)}", "", "")  # fmt: skip
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall("\r\n".join(head).encode() + raw)
        yield


class TestSignals:
    def test_idle(self, folder):
        with running(folder) as server:
            assert server.stop() == 0
            assert "Traceback" not in "".join(server.errors)

    def test_what_it_prints_and_answers_with_compressed_keys_and_values(self, folder, monkeypatch):
        monkeypatch.chdir(folder.parent)
        with running(Path("tiny"), "--kv", "k4v3", "--engine", "cpu", "--host", "127.0.0.1") as server:
            shown = server.lines
            asked = {"model": "tiny", "prompt": "The function returns", "max_tokens": 200, "temperature": 0}
            texts = {httpx2.post(f"{server.url}/completions", json=asked).json()["choices"][0]["text"] for _ in "ab"}
            assert len(texts) == 1
            assert len(texts.pop()) > 100
        assert shown[:4] == [
            "model    tiny   gemma4   native   1.48 MB in 1 shard",
            "engine   cpu: asked for",
            "context  4096 tokens, of prompt and answer together",
            "cache    k4v3: 375.42 kB, 60 B a token, 256 B uncompressed",
        ]
        assert shown[-2].startswith("memory   500.38 MB (")
        assert shown[-1].startswith("ready    http://127.0.0.1:")
        assert shown[-1].endswith("/v1 as `tiny`; Ctrl-C stops")
        assert all(len(line) <= 80 for line in shown)

    def test_a_short_answer_is_finished(self, folder):
        with running(folder, "--grace", "30", slow=True) as server:
            answers, thread = ask_in_background(server, max_tokens=60)
            wait_until(lambda: metric(server.root, "tq_num_requests_running") == 1)
            assert server.stop() == 0
            thread.join(timeout=10)
            assert answers[0].status_code == 200
            assert answers[0].json()["usage"]["completion_tokens"] == 60

    def test_a_long_one_is_told_and_who_waits_too(self, folder):
        with running(folder, "--grace", "0.5", slow=True) as server:
            answers, thread = ask_in_background(server, max_tokens=3000)
            wait_until(lambda: metric(server.root, "tq_num_requests_running") == 1)
            waiting, other = ask_in_background(server, max_tokens=5)
            wait_until(lambda: metric(server.root, "tq_num_requests_waiting") == 1)
            begun = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - begun < 8
            thread.join(timeout=10)
            other.join(timeout=10)
            assert [one.status_code for one in (*answers, *waiting)] == [503, 503]
            assert "Traceback" not in "".join(server.errors)

    def test_a_stream_ends_with_an_error_not_with_done(self, folder):
        with running(folder, "--grace", "0.5", slow=True) as server:
            client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
            stream = client.chat.completions.create(
                **CHAT, max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
            )
            next(iter(stream))
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(openai.APIError, match="shutting down"):
                list(stream)
            assert server.wait() == 0

    def test_ctrl_c(self, folder):
        with running(folder) as server:
            assert server.stop(signal.SIGINT) == 130
            assert "Traceback" not in "".join(server.errors)

    def test_a_port_that_is_taken(self, folder):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            server = ServerProcess(folder, ("--port", str(taken.getsockname()[1])), slow=False)
            assert server.wait() == 3
            assert "error: cannot listen on `127.0.0.1`" in "".join(server.errors)


def ask_in_background(server, max_tokens: int):
    answers = []

    def ask() -> None:
        body = CHAT | {"max_tokens": max_tokens, "ignore_eos": True}
        answers.append(httpx2.post(f"{server.url}/chat/completions", json=body, timeout=60))

    thread = threading.Thread(target=ask)
    thread.start()
    return answers, thread
