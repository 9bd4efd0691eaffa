"""What a data set or a model is made of."""
