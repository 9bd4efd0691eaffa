"""Faults that a slip could make, and the tests that must notice each of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        id: its name on the command line.
        file: the broken file, below `src/pretune`.
        old: the right text, which occurs exactly once in the file.
        new: the wrong text.
        tests: files below `tests`, one of which must fail.
    """

    id: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """Return the content of the file with the fault.

        Raises:
            ValueError: the old text does not occur exactly once.
        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.id}: the old text occurs {count} times in {self.file}")
        return text.replace(self.old, self.new)


MUTANTS = (
    # The three that survived once.
    Mutant(
        "holm-without-running-maximum",
        "evaluation/compare.py",
        "largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))",
        "largest = min(1.0, p_values[i] * (len(p_values) - rank))",
        ("evaluation/test_compare.py",),
    ),
    Mutant(
        "near-duplicates-not-verified",
        "corpus/dedupe.py",
        "if float(np.mean(self._signatures[other] == values)) >= (self.near or 0.0):",
        "if other is not None:",
        ("corpus/test_dedupe.py",),
    ),
    Mutant(
        "tokens-per-second-doubled",
        "training/loop.py",
        "tokens_per_second=sums.tokens / max(sums.seconds, 1e-9),",
        "tokens_per_second=2 * sums.tokens / max(sums.seconds, 1e-9),",
        ("training/test_loop.py",),
    ),
    # text
    Mutant(
        "chunks-cut-at-any-space",
        "text/chunks.py",
        r'_CUT = re.compile(r"\S\n(?=\S)")',
        r'_CUT = re.compile(r"\S\s(?=\S)")',
        ("text/test_chunks.py",),
    ),
    Mutant(
        "number-never-ends-a-sentence",
        "text/sentence_ends.py",
        "return text[start:dot].strip() == word",
        "return True",
        ("text/test_sentence_ends.py",),
    ),
    # tokenizers
    Mutant(
        "longest-text-is-not-cut-first",
        "tokenizers/tokenizer.py",
        "first = min(first, room // 2)",
        "first = min(first, room)",
        ("tokenizers/test_tokenizer.py",),
    ),
    Mutant(
        "vocabulary-exceeds-its-size-by-special-tokens",
        "tokenizers/train.py",
        "vocab_size=size - len(special),",
        "vocab_size=size,",
        ("tokenizers/test_train.py",),
    ),
    # data
    Mutant(
        "positions-run-on-through-choices",
        "data/batch.py",
        "positions = ranges(np.zeros_like(parts), parts)",
        "positions = ranges(np.zeros_like(lengths), lengths)",
        ("data/test_batch.py", "tasks/multiple_choice/test_choose.py"),
    ),
    Mutant(
        "batch-of-exactly-its-tokens-loses-one-example",
        "data/batch_order.py",
        'np.searchsorted(ends, before + size, side="right")',
        'np.searchsorted(ends, before + size, side="left")',
        ("data/test_batch_order.py",),
    ),
    Mutant(
        "masked-tokens-never-random",
        "data/masking.py",
        "random = (action >= rule.as_mask) & (action < rule.as_mask + rule.as_random)",
        "random = (action >= rule.as_mask) & (action < rule.as_random)",
        ("data/test_masking.py",),
    ),
    Mutant(
        "next-sentence-label-reversed",
        "data/sentence_pairs.py",
        "yield self._pair(first, join(second), int(other))",
        "yield self._pair(first, join(second), int(not other))",
        ("data/test_sentence_pairs.py",),
    ),
    Mutant(
        "line-number-ignores-quoted-line-ends",
        "data/readers/delimited.py",
        "number = reader.line_num + 1",
        "number += 1",
        ("data/readers/test_files.py",),
    ),
    # models
    Mutant(
        "padding-key-is-attended-to",
        "models/attention.py",
        "mask = (column >= group.key_lengths)[:, None, None, :]",
        "mask = (column > group.key_lengths)[:, None, None, :]",
        ("models/test_attention.py",),
    ),
    Mutant(
        "causal-mask-counted-from-the-start",
        "models/attention.py",
        "later = (column > row + group.shift)[:, None]",
        "later = (column > row + 0 * group.shift)[:, None]",
        ("models/test_attention.py",),
    ),
    Mutant(
        "embedding-norm-with-pytorchs-eps",
        "models/bert.py",
        "self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)",
        "self.norm = nn.LayerNorm(size)",
        ("models/test_bert.py", "models/test_bert_parity.py"),
    ),
    Mutant(
        "z-loss-gradient-without-its-two",
        "models/heads/vocabulary.py",
        "grad.mul_((1 + 2 * z_loss * log_z)[:, None])",
        "grad.mul_((1 + z_loss * log_z)[:, None])",
        ("models/heads/test_vocabulary.py", "tasks/test_losses.py"),
    ),
    Mutant(
        "crf-backward-transitions-not-transposed",
        "models/heads/crf.py",
        "weights.end, weights.transitions.t())",
        "weights.end, weights.transitions)",
        ("models/heads/test_crf.py",),
    ),
    Mutant(
        "gru-biases-swapped",
        "models/classics/rnn.py",
        'for k in ("weight", "bias") for p in (self.input, self.recurrent)]',
        'for k in ("weight", "bias") for p in (self.input, self.recurrent)]\n'
        "        parts[2:] = reversed(parts[2:])",
        ("models/classics/test_rnn.py",),
    ),
    Mutant(
        "kneser-ney-counts-occurrences",
        "models/classics/ngram.py",
        "np.bincount(longer.link, minlength=len(occurring))",
        "np.bincount(longer.link, longer.raw, len(occurring)).astype(int)",
        ("models/classics/test_ngram.py",),
    ),
    Mutant(
        "lora-not-divided-by-rank",
        "models/lora.py",
        "scale, at = self.alpha / self.rank, 0",
        "scale, at = self.alpha, 0",
        ("training/test_lora.py",),
    ),
    # decoding
    Mutant(
        "top-p-keeps-one-token-too-many",
        "decoding/sampling.py",
        "passing = (mass < p).sum(-1, keepdim=True)  #",
        "passing = (mass < p).sum(-1, keepdim=True) + 1  #",
        ("decoding/test_sampling.py",),
    ),
    Mutant(
        "repetition-penalty-rewards-negative-logits",
        "decoding/sampling.py",
        "torch.where(occurred < 0, occurred * penalty, occurred / penalty)",
        "occurred / penalty",
        ("decoding/test_sampling.py",),
    ),
    Mutant(
        "length-penalty-without-the-stop-token",
        "decoding/beam_search.py",
        "hypothesis.score / max(1, len(hypothesis.tokens)) ** self._length_penalty",
        "hypothesis.score / max(1, len(hypothesis.tokens) - 1) ** self._length_penalty",
        ("tasks/translation/test_translate.py",),
    ),
    # checkpoints
    Mutant(
        "square-matrix-not-transposed",
        "models/gpt2.py",
        """            ("final_norm", "ln_f"),
        ),
        *rules(
            ("layers.{i}.attention.qkv", "h.{i}.attn.c_attn"),
            ("layers.{i}.attention.output", "h.{i}.attn.c_proj"),
""",
        """            ("final_norm", "ln_f"),
            ("layers.{i}.attention.output", "h.{i}.attn.c_proj"),
        ),
        *rules(
            ("layers.{i}.attention.qkv", "h.{i}.attn.c_attn"),
""",
        ("checkpoints/test_load.py", "checkpoints/test_save.py", "parity/test_families.py"),
    ),
    Mutant(
        "renamed-before-it-is-on-the-disk",
        "checkpoints/atomic_io.py",
        "        sync_path(aside)\n        os.replace(aside, path)\n",
        "        os.replace(aside, path)\n",
        ("checkpoints/test_atomic_io.py",),
    ),
    Mutant(
        "manifest-compares-sizes-alone",
        "checkpoints/manifest.py",
        "if _digest(path) != digest:",
        "if status.st_size != size and _digest(path) != digest:",
        ("checkpoints/test_manifest.py",),
    ),
    # corpus
    Mutant(
        "last-document-of-a-shard-from-the-next",
        "corpus/store.py",
        'number = int(np.searchsorted(self._ends, index, side="right"))',
        'number = int(np.searchsorted(self._ends, index + 1, side="right"))',
        ("corpus/test_store.py",),
    ),
    # tasks
    Mutant(
        "label-smoothing-adds-instead-of-mixing",
        "tasks/losses.py",
        "total = (1.0 - smoothing) * plain + smoothing * uniform",
        "total = plain + smoothing * uniform",
        ("tasks/test_losses.py",),
    ),
    Mutant(
        "focal-loss-discounts-what-is-wrong",
        "tasks/losses.py",
        "factors = factors * wrong.pow(focal_gamma)",
        "factors = factors * (1.0 - wrong).pow(focal_gamma)",
        ("tasks/test_losses.py",),
    ),
    Mutant(
        "answer-may-reach-past-its-passage",
        "tasks/question_answering/windows.py",
        "(tokens[:, None] + further < stop[which][:, None])",
        "(tokens[:, None] + further <= stop[which][:, None])",
        ("tasks/question_answering/test_answer_spans.py",),
    ),
    Mutant(
        "entities-of-two-types-run-together",
        "tasks/tagging/schemes.py",
        'fresh = letter in "BS" or last in "OES" or own != kind',
        'fresh = letter in "BS" or last in "OES"',
        ("tasks/tagging/test_tag.py",),
    ),
    Mutant(
        "bleu-smoothing-does-not-halve-again",
        "tasks/translation/translate.py",
        "halvings = np.cumsum((right == 0) & (total > 0), -1)",
        "halvings = (right == 0) & (total > 0)",
        ("tasks/translation/test_translate_metrics.py",),
    ),
    # bundle
    Mutant(
        "last-position-refused",
        "bundle/loadable.py",
        "task.options.max_length > positions:",
        "task.options.max_length >= positions:",
        ("bundle/test_loadable.py", "bundle/test_bundle.py"),
    ),
    # inference
    Mutant(
        "likelihood-greedy-without-the-first-token",
        "inference/likelihood.py",
        "greedy = before.greedy and all(best for _, best in more)",
        "greedy = all(best for _, best in more)",
        ("inference/test_likelihood.py",),
    ),
    Mutant(
        "search-numbers-rows-within-their-chunk",
        "inference/embed.py",
        "best += [(float(scores[i]), start + int(i)) for i in nearest]",
        "best += [(float(scores[i]), int(i)) for i in nearest]",
        ("inference/test_embed.py",),
    ),
    # serving
    Mutant(
        "short-request-waits-for-a-long-one",
        "serving/packing.py",
        "reserved = int(tokens * OLDEST_SHARE) if others else tokens",
        "reserved = tokens",
        ("serving/test_packing.py",),
    ),
    Mutant(
        "late-request-is-computed",
        "serving/worker.py",
        "gone = self._cancelled | late",
        "gone = {*self._cancelled}",
        ("serving/test_worker.py",),
    ),
    Mutant(
        "joined-features-share-records",
        "data/batch.py",
        "[part.records + first for part, first in",
        "[part.records for part, first in",
        ("data/test_batch.py",),
    ),
    # recipe
    Mutant(
        "override-changes-the-callers-values",
        "recipe/recipe.py",
        "values[name] = dict(inner)",
        "values[name] = inner",
        ("recipe/test_recipe.py",),
    ),
    # training
    Mutant(
        "gradient-clipped-before-the-division",
        "training/optimizer.py",
        "((norm / count + 1e-6) / self.clip)",
        "((norm + 1e-6) / self.clip)",
        ("training/test_optimizer.py",),
    ),
    Mutant(
        "warm-up-one-update-early",
        "training/schedule.py",
        "return (step + 1) / (self.warmup + 1)",
        "return (step + 1) / self.warmup",
        ("training/test_schedule.py",),
    ),
    Mutant(
        "resumed-at-the-start-of-the-epoch",
        "training/loop.py",
        'self.cursor = Cursor(*values["cursor"])',
        'self.cursor = Cursor(values["cursor"][0])',
        ("training/test_resume.py",),
    ),
    Mutant(
        "average-counts-updates-from-0",
        "training/ema.py",
        "(1 + self.updates) / (10 + self.updates)",
        "self.updates / (9 + self.updates)",
        ("training/test_ema.py",),
    ),
    Mutant(
        "spikes-add-up-over-good-updates",
        "training/guard.py",
        "        if z <= self.options.threshold:\n            self.streak = 0\n",
        "        if z <= self.options.threshold:\n",
        ("training/test_guard.py",),
    ),
    Mutant(
        "best-evaluation-counts-as-one-without-progress",
        "training/state.py",
        "return sum(step > self.best_step for step, _, _ in self.evaluations)",
        "return sum(step >= self.best_step for step, _, _ in self.evaluations)",
        ("training/test_loop.py",),
    ),
    # evaluation
    Mutant(
        "observed-assignment-not-counted",
        "evaluation/compare.py",
        "as_large = dict.fromkeys(observed, 1)",
        "as_large = dict.fromkeys(observed, 0)",
        ("evaluation/test_compare.py",),
    ),
    Mutant(
        "bin-holds-its-lower-end",
        "evaluation/calibration.py",
        "np.ceil(sure * bins).astype(np.int64) - 1",
        "np.floor(sure * bins).astype(np.int64)",
        ("evaluation/test_calibration.py",),
    ),
    # experiments
    Mutant(
        "backward-pass-with-one-product",
        "experiments/costs.py",
        "return 3 * self.per_token",
        "return 2 * self.per_token",
        ("experiments/test_costs.py",),
    ),
    Mutant(
        "sweep-keeps-the-worst-trial",
        "experiments/sweep.py",
        'sign = 1 if direction == "minimize" else -1',
        'sign = -1 if direction == "minimize" else 1',
        ("experiments/test_sweep.py",),
    ),
    # inspection
    Mutant(
        "quantile-one-value-too-high",
        "inspection/describe_counts.py",
        "zip(ordered, sums, strict=True) if seen >= needed), 0)",
        "zip(ordered, sums, strict=True) if seen > needed), 0)",
        ("inspection/test_describe.py",),
    ),
    # render
    Mutant(
        "quotes-end-an-attribute",
        "render/escaping.py",
        "html.escape(for_terminal(text), quote=True)",
        "html.escape(for_terminal(text), quote=False)",
        ("render/test_escaping.py",),
    ),
    # publishing
    Mutant(
        "private-paths-in-tokenizer-settings",
        "publishing/publish.py",
        r'_PLACES = re.compile(r"_?name_or_path|\w*_(?:file|path|dir|folder)")',
        r'_PLACES = re.compile(r"_?name_or_path")',
        ("publishing/test_publish.py",),
    ),
    # storage
    Mutant(
        "what-has-changed-is-not-sent-again",
        "storage/object_store.py",
        "if arrived.get(name) == digest and _size(store, target) == size:",
        "if name in arrived and _size(store, target) == size:",
        ("storage/test_object_store.py",),
    ),
    # cli
    Mutant(
        "mistakes-exit-with-one",
        "cli/app.py",
        'fail(labelled(tr("error"), hanging(text)), USER_MISTAKE)',
        'fail(labelled(tr("error"), hanging(text)), 1)',
        ("cli/test_app.py",),
    ),
    Mutant(
        "importance-of-all-examples-at-once",
        "export/importance.py",
        "sums.add_(each.abs().sum(0).cpu())",
        "sums.add_(each.sum(0).abs().cpu())",
        ("export/test_importance.py",),
    ),
)
