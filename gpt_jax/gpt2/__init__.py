"""GPT-2 in the folders of Hugging Face, in and out.

Owns the names, shapes and options of their format: weights come in and go out as a tree of our
parameters and a configuration. Needs neither torch nor transformers. Read names.py first.
"""

from gpt_jax.gpt2.export import check_new, export_folder
from gpt_jax.gpt2.folder import Folder, open_folder
from gpt_jax.gpt2.weights import read_params

__all__ = [
    "Folder",
    "check_new",
    "export_folder",
    "open_folder",
    "read_params",
]
