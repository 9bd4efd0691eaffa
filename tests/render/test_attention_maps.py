from __future__ import annotations

import struct
import warnings
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes

from pretune.errors import RunError
from pretune.render.attention_maps import draw_attention


def size_of(path: Path) -> tuple[int, int]:
    """Width and height by the header (PNG specification, section 11.2.2)."""
    start = path.read_bytes()[:24]
    assert start[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", start[16:24])
    return width, height


def maps_of(layers: int, heads: int, tokens: int) -> torch.Tensor:
    return torch.rand(layers, heads, tokens, tokens).softmax(-1)


class TestDrawAttention:
    def test_a_grid(self, tmp_path: Path) -> None:
        path = tmp_path / "all.png"
        tokens = ["[CLS]", "the", "cat", "[SEP]"]
        draw_attention(maps_of(3, 4, 4), tokens, [0, 1, 2], range(4), path)
        width, height = size_of(path)
        assert 600 < height < width < 2000

    def test_one_head(self, tmp_path: Path) -> None:
        path = tmp_path / "one.png"
        draw_attention(maps_of(1, 1, 9), ["token"] * 9, [5], [3], path)
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
        draw_attention(maps, list("abcde"), [0, 1], [0, 1, 2], tmp_path / "a.png")
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
            draw_attention(maps_of(1, 2, 2), [token, token], [0], [0, 1], tmp_path / "a.png")
        size_of(tmp_path / "a.png")

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="cannot be written"):
            draw_attention(maps_of(1, 1, 2), ["a", "b"], [0], [0], tmp_path / "no" / "a.png")
