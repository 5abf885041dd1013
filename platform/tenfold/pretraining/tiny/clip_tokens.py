"""Tokenizer of the small CLIP: byte-pair encoding learned from its captions, stored in transformers' format."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

from tenfold.files import write_atomically

VOCABULARY = 1536
CONTEXT = 40
"""Tokens of a text, start and end tokens included; 99 of 100 captions need at most 25."""
_PAD, _START, _END = "<pad>", "<start>", "<end>"


def learn_tokens(texts: Iterable[str], folder: Path) -> None:
    """Learn the byte pairs and write tokenizer.json and tokenizer_config.json.

    Every string has tokens, in the worst case one for each byte. Texts are lower-cased. The end token has the highest
    id, by which CLIP finds the position to read a text at.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=[_PAD, _START],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([_END])
    numbers = [(token, tokenizer.token_to_id(token)) for token in (_START, _END)]
    if numbers[1][1] != VOCABULARY - 1:
        raise ValueError(
            f"texts must hold pairs for {VOCABULARY} tokens, got end token {numbers[1][1]}; pass more texts"
        )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_START} $A {_END}", special_tokens=numbers)
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _START,
        "eos_token": _END,
        "pad_token": _PAD,
        "model_max_length": CONTEXT,
    }
    write_atomically(folder / "tokenizer.json", tokenizer.to_str(pretty=False).encode())
    write_atomically(folder / "tokenizer_config.json", json.dumps(about, indent=1).encode())
