"""Using a trained model."""

from pretune.infer.predict import Predictor, read_inputs, stream_lines

__all__ = ["Predictor", "read_inputs", "stream_lines"]
