"""What a training run depends on, as one YAML file."""
