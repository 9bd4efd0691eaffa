"""Records from files, packed batches, and the order in which a model sees them."""

from pretune.data.hub_table import HUB_DATASET, hub_table
from pretune.data.pack import Feature, FeatureSet, Layout, PackedBatch, Selection, Skipped
from pretune.data.prefetch import prefetched
from pretune.data.read import MAX_CHARS, TABLE_SUFFIXES, Records, read
from pretune.data.sample import Cursor, DataOrder, batches_by_length, epoch_order

__all__ = [
    "HUB_DATASET",
    "MAX_CHARS",
    "TABLE_SUFFIXES",
    "Cursor",
    "DataOrder",
    "Feature",
    "FeatureSet",
    "Layout",
    "PackedBatch",
    "Records",
    "Selection",
    "Skipped",
    "batches_by_length",
    "epoch_order",
    "hub_table",
    "prefetched",
    "read",
]
