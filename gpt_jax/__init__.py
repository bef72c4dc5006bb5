"""A small GPT in JAX and Flax linen: text -> tokens -> batch -> logits -> loss -> update -> text.

Importing this package touches no file, no device and no environment variable; import the module
you need (`gpt_jax.config`, `gpt_jax.model`, ...). README.md shows how they build on one another.
"""

__version__ = "0.1.0"
