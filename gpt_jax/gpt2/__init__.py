"""GPT-2 in Hugging Face's folders, in and out.

Owns the names, shapes and options of their format. Weights go in and out as a tree of our
parameters and a configuration; it does not touch the training state, the API, torch or
transformers. Read names.py first: it says which tensors a folder needs.
"""

from gpt_jax.gpt2.export import check_new, export_folder
from gpt_jax.gpt2.folder import Folder, open_folder, read_params

__all__ = ["Folder", "check_new", "export_folder", "open_folder", "read_params"]
