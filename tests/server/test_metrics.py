"""What Prometheus reads."""

from tqcli.server.metrics import Histogram, Metrics


def test_a_histogram_counts_upwards():
    histogram = Histogram("x_seconds", "What.", (0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    assert histogram.lines() == [
        "# HELP x_seconds What.", "# TYPE x_seconds histogram",
        'x_seconds_bucket{le="0.1"} 2', 'x_seconds_bucket{le="1.0"} 3', 'x_seconds_bucket{le="+Inf"} 4',
        "x_seconds_sum 7.650000", "x_seconds_count 4",
    ]  # fmt: skip
    assert histogram.mean == 7.65 / 4
    assert Histogram("x", "y", (1.0,)).mean == 0


def test_every_line_is_a_comment_or_a_sample():
    metrics = Metrics()
    metrics.request_ended("stop")
    metrics.request_ended("stop")
    metrics.count_tokens("prompt", 5)
    lines = metrics.text(running=1, waiting=3).splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert samples['tq_requests_total{finished_reason="stop"}'] == "2"
    assert samples["tq_prompt_tokens_total"] == "5"
    assert samples["tq_generation_tokens_total"] == "0"
    assert samples["tq_num_requests_running"] == "1"
    assert samples["tq_num_requests_waiting"] == "3"
    assert all(float(value) >= 0 for value in samples.values())
    named = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    endings = ("_bucket", "_sum", "_count")
    for sample in samples:
        name = sample.partition("{")[0]
        assert name in named or any(name.endswith(end) and name.removesuffix(end) in named for end in endings)
