"""What Prometheus is told."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import generate_latest

from pretune.serving.metrics import PrometheusMetrics
from tests.serving.models import served_model


def test_of_a_model_only_what_answers_now_is_told() -> None:
    metrics, served = PrometheusMetrics(), served_model(name="mood", step=300, digest="0f")
    metrics.version(served)
    metrics.version(replace(served, version=2, step=None, digest="a5"))
    lines = [
        line
        for line in generate_latest(metrics.registry).decode().splitlines()
        if line.startswith("pretune_model_")
    ]
    assert 'pretune_model_version{model="mood"} 2.0' in lines
    assert [line for line in lines if line.startswith("pretune_model_info")] == [
        'pretune_model_info{digest="a5",model="mood",step="",version="2"} 1.0'
    ]
