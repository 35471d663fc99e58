"""What a document is to the model: byte-level BPE with Qwen's pre-tokenizer pattern, and the end token.

Promises: every text has tokens and comes back from them (NFC-normalised, as Qwen does); strings that look like special
tokens inside a text stay text, so that no document can forge an end or a chat turn; the saved folder loads with stock
`AutoTokenizer`. Costs: training takes about a minute for 50 MB of text.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

from miniqwen.config import UserError

END, CHAT_START, CHAT_END = SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Qwen2's and Qwen3's own pattern: contractions, words, single digits, punctuation, line ends, spaces.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A tokenizer with at most `vocab_size` entries, the special tokens among them; fewer if the text has no more.

    Byte-level BPE (Sennrich et al., 2016; Radford et al., 2019). Deterministic in the texts. Needs room for the 256
    bytes and the special tokens: raises `ValueError` below 259.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(SPECIAL_TOKENS):
        raise ValueError(f"a byte-level vocabulary has at least {len(alphabet) + len(SPECIAL_TOKENS)} entries")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((_encodable(text) for text in texts), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    trained = Qwen2Tokenizer(
        vocab=learned["vocab"], merges=[tuple(pair) for pair in learned["merges"]], unk_token=None, eos_token=END,
        pad_token=END, extra_special_tokens=[CHAT_START, CHAT_END],
    )  # fmt: skip
    trained.chat_template = CHAT_TEMPLATE
    return trained


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Raises `UserError` when there is none, or none with an end token."""
    there = [name for name in ("tokenizer.json", "vocab.json", "merges.txt") if Path(folder, name).is_file()]
    if "tokenizer.json" not in there and len(there) < 2:  # the library would make one of a few entries, and say nothing
        raise UserError(f"{folder}: no tokenizer.json (nor vocab.json and merges.txt), so no tokenizer to load")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: no tokenizer that can be loaded ({' '.join(str(error).split())[:200]})") from None
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: the tokenizer has no fast form (tokenizer.json), which texts are encoded with")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no end token (eos_token), which every document ends with")
    return tokenizer


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Each text's tokens with the end token behind them; special-token strings in the text are ordinary text."""
    end = tokenizer.eos_token_id  # once: the library looks it up
    encoded = _encode(tokenizer, texts)
    for ids in encoded:  # in place: copying long lists costs a hundredth of the tokenizer's own time
        ids.append(end)
    return encoded


def document_encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[str]], list[list[int]]]:
    """`encode_documents` with a tokenizer of its own, for threads: a tokenizer cannot be set up while it encodes."""
    own = copy.deepcopy(tokenizer)
    return lambda texts: encode_documents(own, texts)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that decides which tokens a document becomes."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described |= {"padding": None, "truncation": None, "end": tokenizer.eos_token_id}  # the first two: how it is called
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """One text's tokens by the same rule, without an end token."""
    return _encode(tokenizer, [text])[0]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    backend: Tokenizer = tokenizer.backend_tokenizer
    if not backend.encode_special_tokens:
        backend.encode_special_tokens = (
            True  # as text; each call of the tokenizer itself, chat templates too, sets its own
        )
    encodable = [_encodable(text) for text in texts]
    return [encoding.ids for encoding in backend.encode_batch_fast(encodable, add_special_tokens=False)]


def _encodable(text: str) -> str:
    """JSON can spell halves of surrogate pairs, which UTF-8 has no bytes for: they become question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
