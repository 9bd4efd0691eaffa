"""Which model is served."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from pretune.serving.identity import DIGITS, digest_of, update_of


def test_a_checkpoint_of_a_run_has_its_update(tmp_path: Path) -> None:
    for name, step in (("step-000600", 600), ("step-000600.1", 600), ("steps-1", None)):
        (tmp_path / name).mkdir()
        assert update_of(tmp_path / name) == step
    (tmp_path / "best").symlink_to("step-000600")
    assert update_of(tmp_path / "best") == 600


def test_a_digest_is_that_of_the_weights(tmp_path: Path) -> None:
    assert digest_of(tmp_path) is None
    (tmp_path / "pytorch_model.bin").write_bytes(b"old")
    assert digest_of(tmp_path) == sha256(b"old").hexdigest()[:DIGITS]
    # What else lies there, the state of the run too, does not count; safetensors come first.
    (tmp_path / "model.safetensors").write_bytes(b"one")
    (tmp_path / "trainer.safetensors").write_bytes(b"state")
    assert digest_of(tmp_path) == sha256(b"one").hexdigest()[:DIGITS]
    assert digest_of(tmp_path / "model.safetensors") == digest_of(tmp_path)
    # Several files: the digest of theirs. An adapter beside its base is one of them.
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"two")
    parts = [sha256(part).hexdigest() for part in (b"two", b"one")]
    assert digest_of(tmp_path) == sha256("".join(parts).encode()).hexdigest()[:DIGITS]
