"""Sharing on the Hugging Face Hub: cards, push and pull. Nothing imports it before something is shared."""
