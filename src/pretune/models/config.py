"""The base of every family's configuration: names, checks, `config.json` in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

from pretune.errors import CheckpointError
from pretune.models.layers import ACTIVATIONS

#: The largest sizes accepted: a broken or hostile config.json must not cost memory or minutes.
MAX_SIZES = {
    "vocab_size": 10_000_000,
    "hidden_size": 65_536,
    "num_hidden_layers": 1_000,
    "num_attention_heads": 65_536,
    "intermediate_size": 1_000_000,
    "max_position_embeddings": 1_000_000,
    "type_vocab_size": 256,
}

#: The entry of `config.json` for attention heads that were removed; see `models/pruned.py`. It is
#: not called `pruned_heads`: transformers 4 knows that name, and expects smaller matrices then.
REMOVED_HEADS = "pretune_removed_heads"


def brief(value: object) -> str:
    """Shorten a value from a file, which may be of any length, for an error message."""
    text = str(value)
    return text if len(text) <= 100 else text[:100] + "..."


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a model, under the names its family's `config.json` uses.

    Class attributes:
        model_type: the name of the family in `config.json`.
        names: our names of sizes and the family's own, where they differ.
        aliases: other names of entries that transformers reads, and the family's own.
        dropout_names: the family's names for the dropout of the hidden layers.
        attention_dropout_name: the family's name for the dropout of the attention weights.
        activation_name: the family's name for the activation function.
        eps_name: the family's name for the eps of its LayerNorms, if `config.json` has it.
        endless: whether texts may have any length, as there is no table of positions.
        counts_from_pad: whether positions count from the number of the padding token + 1.
        smallest: the smallest values of sizes, by our names, where that is not 1.
    """

    model_type: ClassVar[str]
    names: ClassVar[Mapping[str, str]] = {}
    aliases: ClassVar[Mapping[str, str]] = {}
    dropout_names: ClassVar[tuple[str, ...]]
    attention_dropout_name: ClassVar[str]
    activation_name: ClassVar[str]
    eps_name: ClassVar[str] = ""
    endless: ClassVar[bool] = False
    counts_from_pad: ClassVar[bool] = False
    smallest: ClassVar[Mapping[str, int]] = {}

    #: Standard deviation of fresh weights.
    initializer_range: float = 0.02
    #: Heads that were removed, by the number of the layer as a text; both are counted from 0.
    pretune_removed_heads: Mapping[str, Sequence[int]] | None = None

    @property
    def removed_heads(self) -> dict[int, Sequence[int]]:
        """The numbers of the attention heads that were removed, by layer."""
        return {int(layer): heads for layer, heads in (self.pretune_removed_heads or {}).items()}

    @property
    def hidden_dropout(self) -> float:
        """The dropout of the hidden layers, which is the default of heads."""
        return float(getattr(self, self.dropout_names[0]))

    @property
    def target_vocab_size(self) -> int:
        """Entries of the vocabulary that is written: another one in some translation models."""
        return self.size("vocab_size")

    def size(self, name: str) -> int:
        """Look up a size by our name, e.g. `hidden_size`, whatever the family calls it.

        `max_position_embeddings` is the most tokens of a text.
        """
        value = getattr(self, self.names.get(name, name))
        assert isinstance(value, int)  # noqa: S101 - for mypy
        return value

    def resized(self, **entries: Any) -> Self:
        """A copy with other entries, which are given by our names."""
        own = {self.names.get(name, name): value for name, value in entries.items()}
        return replace(self, **own)

    def with_layers(self, kept: Sequence[int], **entries: Any) -> Self:
        """A copy for a model that keeps only some layers.

        Args:
            kept: their numbers, counted from 0, ascending.
            entries: other entries, by our names.

        Raises:
            CheckpointError: the family cannot do without a layer that is left out.
        """
        return self.resized(num_hidden_layers=len(kept), **entries)

    @classmethod
    def layer_entries(cls) -> tuple[str, ...]:
        """The entries of `config.json` that count the layers, one for each stack."""
        return (cls.names.get("num_hidden_layers", "num_hidden_layers"),)

    @classmethod
    def dropout_entries(
        cls, dropout: float | None, attention_dropout: float | None
    ) -> dict[str, float]:
        """The entries of the family's `config.json` that set these dropouts; None sets nothing.

        Raises:
            CheckpointError: a dropout for layers that have none.
        """
        if dropout and not cls.dropout_names:
            raise CheckpointError(
                f"dropout: the layers of a {cls.model_type} have none",
                "Leave it out, or set attention_dropout.",
            )
        given = {} if dropout is None else dict.fromkeys(cls.dropout_names, dropout)
        if attention_dropout is not None:
            given[cls.attention_dropout_name] = attention_dropout
        return given

    def check_common(self) -> None:
        """Check sizes, dropouts and activation; a `CheckpointError` names what makes no sense."""
        self.check_sizes((*self.dropout_names, self.attention_dropout_name))
        size, heads = (self.names.get(n, n) for n in ("hidden_size", "num_attention_heads"))
        if getattr(self, size) % getattr(self, heads):
            raise CheckpointError(
                f"config: {size} {getattr(self, size)} is not divisible by "
                f"{heads} {getattr(self, heads)}"
            )
        activation = brief(getattr(self, self.activation_name))
        if activation not in ACTIVATIONS:
            raise CheckpointError(
                f"config: the activation {self.activation_name} '{activation}' is unknown here",
                # None is suggested: a similar name may be another function.
                f"Known: {', '.join(ACTIVATIONS)}.",
            )
        self._check_removed_heads()

    def _check_removed_heads(self) -> None:
        """Check that removed heads are of this model, and that each layer has one left."""
        given = self.pretune_removed_heads
        if given is None:
            return
        layers = [str(number) for number in range(self.size("num_hidden_layers"))]
        heads = range(self.size("num_attention_heads"))
        if not isinstance(given, Mapping) or not all(
            layer in layers
            and isinstance(lost, list | tuple)
            and all(type(head) is int and head in heads for head in lost)
            and len({*lost}) == len(lost) < len(heads)
            for layer, lost in given.items()
        ):
            raise CheckpointError(
                f"config: {REMOVED_HEADS} must name layers of {len(layers)} and for each some of "
                f"its {len(heads)} heads, not {brief(repr(given))}"
            )

    def check_sizes(self, dropouts: Sequence[str]) -> None:
        """Check the sizes and the named dropouts; a `CheckpointError` names what is wrong."""
        own = {item.name for item in fields(self)}
        for name, limit in MAX_SIZES.items():
            if self.names.get(name, name) in own:
                self.check(self.names.get(name, name), int, self.smallest.get(name, 1), limit)
        for name in dropouts:
            self.check(name, float, 0, 1)
            if getattr(self, name) == 1:
                raise CheckpointError(f"config: {name} must be in [0, 1): 1 leaves nothing")
        if self.eps_name in own:
            self.check(self.eps_name, float, 0, 1)
        self.check("initializer_range", float, 0, 100)  # the same name in every family

    def check(self, name: str, kind: type, low: int, high: int) -> None:
        """Check that an entry is a number in a range; else a `CheckpointError` names it."""
        value = getattr(self, name)
        kinds = (int, float) if kind is float else (int,)
        if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
            number = "number" if kind is float else "whole number"
            raise CheckpointError(
                f"config: {name} must be a {number} from {low} to {high:,}, "
                f"not {brief(repr(value))}"
            )

    def check_flags(self, *names: str) -> None:
        """Check that entries are true or false; else a `CheckpointError` names one."""
        for name in names:
            if not isinstance(value := getattr(self, name), bool):
                raise CheckpointError(
                    f"config: {name} must be true or false, not {brief(repr(value))}"
                )

    def check_sinusoids(self) -> None:
        """Check that the table of sinusoids, which is computed, takes at most 64 MiB."""
        positions, size = self.size("max_position_embeddings"), self.size("hidden_size")
        if positions * size > 2**24:
            raise CheckpointError(
                f"config: {positions:,} sinusoidal positions of {size:,} numbers are more than "
                "64 MiB"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a config from the contents of a `config.json`; unknown keys are ignored.

        Raises:
            CheckpointError: a value makes no sense; names it.
        """
        # The other name of an entry goes before its own, as to transformers.
        given = {name: values.get(other) for other, name in cls.aliases.items()}
        values = {**values, **{name: v for name, v in given.items() if v is not None}}
        known = {item.name: item.default for item in fields(cls)}
        for size in MAX_SIZES:
            name = cls.names.get(size, size)
            if known.get(name) is not None and values.get(name, 0) is None:
                raise CheckpointError(f"config: {name} is null, not a whole number")
        chosen = {key: value for key, value in values.items() if key in known and value is not None}
        return cls(**chosen)

    def to_dict(self) -> dict[str, Any]:
        """The entries for `config.json`, with `model_type`."""
        entries = {"model_type": self.model_type, **asdict(self)}
        if not self.pretune_removed_heads:
            del entries[REMOVED_HEADS]
        return entries
