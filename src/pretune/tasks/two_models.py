"""The ability of tasks that train a second model beside the first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from pretune.models.backbone import Backbone
from pretune.models.config import ModelConfig


class TrainsCompanion(ABC):
    """Ability: a second model is trained beside the first, and saved in a folder of its own."""

    #: The folder of the second model in that of the first.
    companion_folder: ClassVar[str]
    #: The name of its head in the family.
    companion_head: ClassVar[str]

    @property
    @abstractmethod
    def companion_source(self) -> str | None:
        """Where the second model comes from if not from the first one's folder; None: it is new."""

    @abstractmethod
    def companion_sizes(self, backbone: Backbone) -> ModelConfig:
        """Return the sizes of a new second model.

        Args:
            backbone: of the first model.

        Raises:
            CheckpointError: the family has none.
        """

    @abstractmethod
    def join(self, model: nn.Module, companion: nn.Module) -> None:
        """Put the second model beside the first, as its part `companion`."""
