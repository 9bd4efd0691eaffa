"""Using a trained model: predictions, generated text, conversations, embeddings, likelihoods."""
