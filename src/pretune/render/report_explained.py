"""What the loss of some examples hangs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pretune.evaluation.examine import Examined
from pretune.evaluation.explain import Explained
from pretune.render.page import Folded, Paragraph, Part, Picture, Section, escaped
from pretune.render.report_charts import attention_chart
from pretune.tasks.base import ReadsStream

#: In the place of no entities, or no labels.
NOTHING = "(none)"
_METHOD = (
    "Gradient x input: how much the loss would rise, to first order, if the embedding of a token "
    "grew. Orange raises the loss, blue lowers it, each relative to the strongest of its example; "
    "the number shows where the pointer rests. The values do not add up to the loss, and a token "
    "can matter without having one. Attention maps are the mean over the heads of a layer: a row "
    "is a token that looks, a column one that is looked at."
)


@dataclass(frozen=True)
class Coloured:
    """Tokens in the colours of their attributions."""

    explained: Explained

    def html(self) -> str:
        """As HTML: orange raises the loss, blue lowers it; the number is in the title."""
        most = max(map(abs, self.explained.attributions), default=0.0) or 1.0
        found = []
        for token, value in zip(self.explained.tokens, self.explained.attributions, strict=True):
            colour = "230, 120, 0" if value > 0 else "0, 114, 178"
            style = f"background: rgba({colour}, {abs(value) / most * 0.8:.2f})"
            found.append(f'<span style="{style}" title="{value:+.4f}">{escaped(token)}</span>')
        return f'<p class="tokens">{" ".join(found)}</p>'


def explained_section(examined: Examined, explained: Mapping[int, Explained]) -> Section | None:
    """Attributions and attention maps of the examples that were asked for."""
    if not explained:
        return None
    kind, places = examined.places()
    parts: list[Part] = [Paragraph(_METHOD)]
    for number, one in explained.items():
        example = examined.examples[number]
        grade = example.grade
        said = ""
        if grade.truth or grade.answer:
            said = f"; truth: {grade.truth or NOTHING}; answer: {grade.answer or NOTHING}"
        place = f"{kind} {places[number]}"
        parts.append(Paragraph(f"{place.capitalize()}: loss {example.mean_loss:.4f}{said}"))
        parts.append(Coloured(one))
        if one.attention is not None:
            name = f"attention-{place.replace(' ', '-')}"
            if isinstance(examined.task, ReadsStream):
                name += f"-{number + 1}"
            chart = attention_chart(one)
            parts.append(
                Folded("Attention maps", Picture(chart, f"attention maps of {place}", name=name))
            )
    return Section("What the loss hangs on", parts)
