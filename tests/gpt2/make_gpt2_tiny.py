"""Makes the folder gpt2_tiny: a random GPT-2 of transformers, its logits and its gradients.

No test runs this.

    pip install torch transformers
    PYTHONPATH=. python tests/gpt2/make_gpt2_tiny.py

Its parameters are larger than GPT-2's initial ones, so each of them is visible in the logits.
"""

from pathlib import Path

import numpy as np
import tokenizers
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_jax.text import play

OUT = Path(__file__).parent / "gpt2_tiny"
VOCAB = 288


def tokenizer() -> tokenizers.Tokenizer:
    """Byte pairs of the built-in play, with GPT-2's way from text to words."""
    new = tokenizers.Tokenizer(tokenizers.models.BPE())
    new.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    new.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    new.train_from_iterator([play.write()[:50_000]], trainer)
    return new


def model() -> GPT2LMHeadModel:
    """A GPT-2 of two blocks of width 12, with three heads."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=24, n_embd=12, n_layer=2, n_head=3,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    new = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in new.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return new


def main() -> None:
    """Writes the folder, with logits and gradients of one batch in expected.npz."""
    made = model()
    made.save_pretrained(OUT)
    tokenizer().save(str(OUT / "tokenizer.json"))
    windows = torch.randint(VOCAB, (2, 25), generator=torch.Generator().manual_seed(1))
    logits = made(windows[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    loss.backward()
    named = made.transformer.named_parameters()
    arrays = {name: parameter.grad.numpy() for name, parameter in named}
    arrays |= {"windows": windows.numpy(), "logits": logits.detach().numpy(), "loss": loss.item()}
    np.savez_compressed(OUT / "expected.npz", **arrays)
    (OUT / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
