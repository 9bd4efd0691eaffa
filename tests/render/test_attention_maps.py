from __future__ import annotations

import struct
import warnings
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes

from pretune.errors import RunError
from pretune.render.attention_maps import (
    check_kind,
    draw_attention,
    without_signs,
    write_attention,
)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height by the header (PNG specification, section 11.2.2)."""
    start = path.read_bytes()[:24]
    assert start[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", start[16:24])
    return width, height


def drawn_to(path: Path, maps: torch.Tensor, tokens: list[str]) -> None:
    layers, heads = range(maps.shape[0]), range(maps.shape[1])
    write_attention(draw_attention(maps, tokens, layers, heads), path, "Attention")


def maps_of(layers: int, heads: int, tokens: int) -> torch.Tensor:
    return torch.rand(layers, heads, tokens, tokens).softmax(-1)


class TestDrawAttention:
    def test_a_grid(self, tmp_path: Path) -> None:
        path = tmp_path / "all.png"
        tokens = ["[CLS]", "the", "cat", "[SEP]"]
        drawn_to(path, maps_of(3, 4, 4), tokens)
        width, height = size_of(path)
        assert 600 < height < width < 2000

    def test_one_head(self, tmp_path: Path) -> None:
        path = tmp_path / "one.png"
        drawn_to(path, maps_of(1, 1, 9), ["token"] * 9)
        width, height = size_of(path)
        assert 400 < width < 1500
        assert 400 < height < 1500

    def test_what_is_drawn_are_the_maps(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn = []
        real = Axes.imshow

        def spy(self: Axes, data, **more):
            drawn.append((torch.from_numpy(data.copy()), more["vmin"], more["vmax"]))
            return real(self, data, **more)

        monkeypatch.setattr(Axes, "imshow", spy)
        maps = maps_of(2, 3, 5)
        drawn_to(tmp_path / "a.png", maps, list("abcde"))
        assert len(drawn) == 6
        for (data, low, high), wanted in zip(drawn, maps.flatten(0, 1), strict=True):
            torch.testing.assert_close(data, wanted)
            torch.testing.assert_close(data.sum(-1), torch.ones(5))
            assert (low, high) == (0, 1)

    @pytest.mark.parametrize(
        "token", ["$", "$$", "$x^$", "\\frac", "Ġthe", "好", "😀", "\u200b", "%"]
    )
    def test_tokens_of_every_kind(self, tmp_path: Path, token: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drawn_to(tmp_path / "a.png", maps_of(1, 2, 2), [token, token])
        size_of(tmp_path / "a.png")

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="cannot be written"):
            drawn_to(tmp_path / "no" / "a.png", maps_of(1, 1, 2), ["a", "b"])

    @pytest.mark.parametrize("kind", ["svg", "html", "SVG"])
    def test_texts_are_texts(self, tmp_path: Path, kind: str) -> None:
        """Also those that no font here can draw; and nothing of them is markup."""
        path = tmp_path / f"map.{kind}"
        drawn_to(path, maps_of(1, 2, 3), ["<script>", "Ġthe", "😀"])
        text = path.read_text(encoding="utf-8")
        for part in ("&lt;script&gt;", "Ġthe", "😀", "layer 0, head 1"):
            assert part in text
        assert "<script" not in text
        assert text.startswith("<!DOCTYPE html>" if kind == "html" else "<svg")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("map.jpg", "not drawn as .jpg files"), ("map", "its name does not end in the kind")],
)
def test_other_kinds_are_refused(name: str, wrong: str) -> None:
    with pytest.raises(RunError, match=wrong):
        check_kind(Path(name))


def test_tokens_that_a_png_lacks() -> None:
    assert without_signs(["a", "Ġthe", "$"]) is None
    told = without_signs(["a", "\U0001fae8", "\U0001fae8", "\U0001fae9"])
    assert told is not None
    assert "2 tokens (\U0001fae8, \U0001fae9)" in told
