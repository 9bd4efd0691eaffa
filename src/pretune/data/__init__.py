"""Records from files, packed batches, and the order in which a model sees them."""

from pretune.data.features import Features, MadeFeatures
from pretune.data.hub_table import HUB_DATASET, hub_table
from pretune.data.layout import Layout, Selection
from pretune.data.pack import (
    Feature,
    FeatureSet,
    PackedBatch,
    Repaired,
    Skipped,
)
from pretune.data.prefetch import prefetched
from pretune.data.read import MAX_CHARS, TABLE_SUFFIXES, Records, read
from pretune.data.sample import (
    Cursor,
    DataOrder,
    StreamOrder,
    batches_by_length,
    batches_in_turn,
    epoch_order,
)

__all__ = [
    "HUB_DATASET",
    "MAX_CHARS",
    "TABLE_SUFFIXES",
    "Cursor",
    "DataOrder",
    "Feature",
    "FeatureSet",
    "Features",
    "Layout",
    "MadeFeatures",
    "PackedBatch",
    "Records",
    "Repaired",
    "Selection",
    "Skipped",
    "StreamOrder",
    "batches_by_length",
    "batches_in_turn",
    "epoch_order",
    "hub_table",
    "prefetched",
    "read",
]
