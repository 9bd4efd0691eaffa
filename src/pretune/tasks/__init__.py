"""The jobs a model can be trained to do, one folder each."""
