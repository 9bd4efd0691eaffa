"""Model cards, staging, and the Hugging Face Hub."""
