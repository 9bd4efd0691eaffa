"""From the scores of words to their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pretune.data.arrays import Array
from pretune.models.heads.crf import CrfWeights, marginals, viterbi
from pretune.models.heads.token import TagScores
from pretune.tasks.tagging.schemes import Scheme, follows


@dataclass(frozen=True)
class WindowTags:
    """The words that count in one window.

    Attributes:
        logits: `[W, labels]` float32.
        field: of the model, if it has one; the same for all windows.
    """

    logits: Array
    field: CrfWeights | None


def window_tags(outputs: TagScores, lengths: Sequence[int]) -> list[WindowTags]:
    """What a batch says, window by window.

    Args:
        outputs: of its words.
        lengths: how many words each window has.
    """
    logits = outputs.logits.detach().float().cpu().numpy()
    field = None if outputs.field is None else outputs.field.cpu()
    ends = np.cumsum(np.asarray(lengths, dtype=np.int64))[:-1]
    return [WindowTags(part.copy(), field) for part in np.split(logits, ends)]


def decode(
    sentences: Sequence[Sequence[WindowTags]], labels: Sequence[str], scheme: Scheme
) -> list[tuple[Array, Array]]:
    """The labels of the words of sentences, and the probabilities of all labels.

    Without a field each word has its most probable label. With one, a sentence has the sequence
    with the highest score of those that are well-formed in the scheme, whatever windows it was read
    in; the probabilities are those of the field, in which other sequences take part.

    Args:
        sentences: the windows of each, in their order.
        labels: of the model.
        scheme: that these are in.

    Returns:
        `[W]` int64 and `[W, labels]` float32 for each sentence.
    """
    whole = [np.concatenate([part.logits for part in parts]) for parts in sentences]
    lengths = [len(logits) for logits in whole]
    logits = torch.from_numpy(np.concatenate(whole))
    field = sentences[0][0].field
    if field is None:
        best, sure = logits.argmax(-1), logits.softmax(-1)
    else:
        best = viterbi(logits, lengths, field.only(*_allowed(labels, scheme)))
        sure = marginals(logits, lengths, field)
    ends = np.cumsum(lengths)[:-1]
    return list(zip(np.split(best.numpy(), ends), np.split(sure.numpy(), ends), strict=True))


def _allowed(
    labels: Sequence[str], scheme: Scheme
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which label may follow which, begin a sentence, and end it."""
    steps = [[follows(a, b, scheme) for b in labels] for a in labels]
    starts = [follows(None, label, scheme) for label in labels]
    ends = [follows(label, None, scheme) for label in labels]
    return torch.tensor(steps), torch.tensor(starts), torch.tensor(ends)
