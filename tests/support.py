"""Names that tests share."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
GPT2_TINY = Path(__file__).parent / "gpt2" / "gpt2_tiny"  # A folder in Hugging Face's format.
COSINE = {"schedule": "cosine", "min_learning_rate": 1e-4}
