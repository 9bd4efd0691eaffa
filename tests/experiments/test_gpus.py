from __future__ import annotations

from pathlib import Path

import pytest

from pretune.errors import RecipeError, RunError
from pretune.experiments.gpus import called, find_gpu, known_gpus

OWN = "mine: {memory: 10, bf16: null, float32: 2.5, bandwidth: 100, link: 8, network: 0.1}\n"


def test_units() -> None:
    gpu = find_gpu("h100")
    assert (gpu.memory, gpu.bf16, gpu.link) == (80 * 2**30, 989e12, 450e9)


def test_every_figure_has_a_source() -> None:
    for gpu in known_gpus().values():
        assert "data sheet" in gpu.source or "white paper" in gpu.source, gpu.name
        assert gpu.known_as, gpu.name
        # Float32 outside the tensor cores is never faster, nor the network than the links.
        assert gpu.bf16 is None or gpu.bf16 > gpu.float32, gpu.name
        assert gpu.network <= gpu.link, gpu.name


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("cuda:0 (NVIDIA A100-SXM4-80GB)", "a100-80"),
        ("cuda:0 (NVIDIA H100 80GB HBM3)", "h100"),
        ("cuda:0 (NVIDIA L4)", "l4"),
        ("cuda:0 (NVIDIA L40S)", "l40s"),
        ("cuda:0 (NVIDIA GeForce RTX 4090)", "4090"),
        ("cpu (x86_64)", None),
    ],
)
def test_by_the_drivers_name(name: str, found: str | None) -> None:
    gpu = called(name)
    assert (None if gpu is None else gpu.name) == found


def test_figures_can_be_changed() -> None:
    gpu = find_gpu("a100-80", spec=("network=12.5", "memory=96"))
    assert (gpu.network, gpu.memory, gpu.link) == (12.5e9, 96 * 2**30, 300e9)
    assert "--spec network=12.5" in gpu.source


def test_a_file_with_others(tmp_path: Path) -> None:
    path = tmp_path / "gpus.yaml"
    path.write_text(OWN, encoding="utf-8")
    for gpu in (find_gpu(None, path), find_gpu("mine", path)):
        assert gpu.float32 == 2.5e12
        assert gpu.peak("float32") == 2.5e12
        with pytest.raises(RunError, match="no bf16 products"):
            gpu.peak("bf16")
    assert find_gpu("h100", path).name == "h100"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "not a table of GPUs"),
        ("mine: 3", "not a table of GPUs"),
        ("mine: {memory: 10}", "lacks 'bf16'"),
        (OWN.replace("memory", "memori"), "no 'memori'"),
        (OWN.replace("2.5", "-1"), "mine.float32: should be a number above 0, not -1"),
        (OWN.replace("2.5", "null"), "mine.float32: should be a number above 0, not null"),
        (OWN.replace("2.5", ".nan"), "should be a number above 0"),
        (OWN.replace("2.5", "true"), "should be a number above 0"),
        ("a: {b: ", "line 1"),
    ],
)
def test_files_that_are_none(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "gpus.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises((RunError, RecipeError), match=said):
        find_gpu(None, path)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no 'h10'") as error:
        find_gpu("h10")
    assert "Did you mean 'h100'?" in str(error.value)
    with pytest.raises(RunError, match="cannot be read"):
        find_gpu(None, tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"\xe9: {}")
    with pytest.raises(RunError, match="cannot be read"):
        find_gpu(None, tmp_path / "latin.yaml")
    for text in ("network", "netwrk=1", "network=", "network=fast", "=3"):
        with pytest.raises(RunError, match="--spec"):
            find_gpu("h100", spec=(text,))
