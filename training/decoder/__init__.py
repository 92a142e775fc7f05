"""The decoder (model), its attention and its loss for preferences, and Hugging Face directories of it (export)."""
