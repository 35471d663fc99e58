"""What a document is to the model: byte-level BPE with Qwen's pre-tokenizer pattern, and the end token.

Promises: every text has tokens and comes back from them (NFC-normalised, as Qwen does); strings that look like control
tokens inside a text stay text, so that no document can forge an end or a chat turn; a text of any length takes memory
for its tokens, not for the library's notes on them; the saved folder loads with stock
`AutoTokenizer`. Costs: training takes about a minute for 50 MB of text.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

from miniqwen.errors import UserError, is_shortage
from miniqwen.files import check_regular, encodable, read_json, write_json

END, CHAT_START, CHAT_END = SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Qwen2's and Qwen3's own pattern: contractions, words, single digits, punctuation, line ends, spaces.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SURROGATES = re.compile("[\ud800-\udfff]")
WORD_END = re.compile(r"[^\W_](?=[ \t\r\n,.;:!?，。、；：])")  # of letters and numbers, where splits by PATTERN end too
USUAL_PIECE = 1 << 10  # characters of a text that are encoded at once: the library is slower with more
LONG_PIECE, LONGEST_PIECE = 1 << 16, 1 << 17  # the same for tokenizers that split otherwise, and where no word ends
CHARACTERS_AT_ONCE = 1 << 21  # of all pieces in one call


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
    tokenizer.train_from_iterator((encodable(text) for text in texts), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learned["vocab"], merges=[tuple(pair) for pair in learned["merges"]], unk_token=None, eos_token=END,
        pad_token=END, extra_special_tokens=[CHAT_START, CHAT_END],
    )  # fmt: skip


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Raises `UserError` when there is none, or none with an end token."""
    there = [name for name in ("tokenizer.json", "vocab.json", "merges.txt") if Path(folder, name).is_file()]
    if "tokenizer.json" not in there and len(there) < 2:  # the library would make one of a few entries, and say nothing
        raise UserError(f"{folder}: no tokenizer.json (nor vocab.json and merges.txt), so no tokenizer to load")
    try:
        check_regular(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of any kind: the library finds out what is wrong in a file by using it
        if is_shortage(error):
            raise
        raise UserError(f"{folder}: no tokenizer that can be loaded ({' '.join(str(error).split())[:200]})") from None
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: the tokenizer has no fast form (tokenizer.json), which texts are encoded with")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no end token (eos_token), which every document ends with")
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer's files for transformers 4 and 5: the first cannot load the second's list of tokens."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    described = read_json(file)
    if isinstance(extra := described.get("extra_special_tokens"), list):
        del described["extra_special_tokens"]
        write_json(file, described | {"additional_special_tokens": extra})


def document_encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What makes of texts their tokens [length] each, the end token behind them; strings like control tokens stay text.

    Safe in threads, as nothing is set up while it encodes.
    """
    end = [tokenizer.eos_token_id]
    return lambda texts: _encode(tokenizer, texts, end)


def text_oddities(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], dict[str, int]]:
    """Counts what is odd in a text: `replaced_surrogates`, and `special_token_strings`, which stay text."""
    by_start: dict[str, list[str]] = {}  # looking for two characters is cheap, and most texts have none of these
    for token in sorted(token.content for token in tokenizer.added_tokens_decoder.values()):
        by_start.setdefault(token[:2], []).append(token)

    def count(text: str) -> dict[str, int]:
        found = {}
        strings = sum(text.count(token) for start, tokens in by_start.items() if start in text for token in tokens)
        if strings:
            found["special_token_strings"] = strings
        if encodable(text) is not text:
            found["replaced_surrogates"] = len(SURROGATES.findall(text))
        return found

    return count


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that decides which tokens a document becomes."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described |= {"padding": None, "truncation": None, "end": tokenizer.eos_token_id}  # the first two: how it is called
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> np.ndarray | None:
    """How many bytes of text each token stands for [vocabulary]; None where tokens are not written as bytes.

    In byte-level BPE each character of an entry stands for a byte. Control tokens stand for no text.
    """
    if not isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        return None
    entries = tokenizer.get_vocab()
    found = np.zeros(max(entries.values()) + 1, np.int64)
    for entry, token in entries.items():
        found[token] = len(entry)
    found[list(tokenizer.added_tokens_decoder)] = 0
    return found


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """One text's tokens by the same rule, without an end token."""
    ids: list[int] = _encode(tokenizer, [text])[0].tolist()
    return ids


def encode_endings(tokenizer: PreTrainedTokenizerBase, text: str, endings: Sequence[str]) -> list[list[int]]:
    """The tokens of `text` with each of `endings` behind it, as `encode_text` of both joined finds them.

    What stands before the last word end of `text` is encoded once: no ending changes its tokens (see `split_text`).
    """
    ends = list(WORD_END.finditer(text)) if _text_backends(tokenizer)[2] == USUAL_PIECE else []
    stem = ends[-1].end() if ends else 0
    shared, *tails = _encode(tokenizer, [text[:stem], *(text[stem:] + ending for ending in endings)])
    return [[*shared.tolist(), *tail.tolist()] for tail in tails]


def encode_beginning(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text that a model goes on with.

    Spaces at its end belong to what follows, where byte-level BPE wants them; an empty one is a document's beginning.
    """
    return encode_text(tokenizer, text.rstrip(" ")) or [tokenizer.eos_token_id]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], end: Sequence[int] = ()) -> list[np.ndarray]:
    """Each text's tokens and `end`. In pieces, few at once: the library takes 100 bytes a token, and time for them."""
    as_it_is, normalizing, usual = _text_backends(tokenizer)
    pieces = [(number, piece) for number, text in enumerate(texts) for piece in split_text(encodable(text), usual)]
    found: list[list[np.ndarray]] = [[] for _ in texts]
    start = 0
    while start < len(pieces):
        stop, characters = start, 0
        while stop < len(pieces) and characters < CHARACTERS_AT_ONCE:
            characters += len(pieces[stop][1])
            stop += 1
        some = [piece for _, piece in pieces[start:stop]]
        backend = as_it_is if all(unicodedata.is_normalized("NFC", piece) for piece in some) else normalizing
        for index, encoding in enumerate(backend.encode_batch_fast(some, add_special_tokens=False), start):
            number, ids = pieces[index][0], encoding.ids
            if index + 1 == len(pieces) or pieces[index + 1][0] != number:
                ids.extend(end)  # in place: copying long lists costs a hundredth of the tokenizer's own time
            found[number].append(np.fromiter(ids, np.int64, len(ids)))
        start = stop
    return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in found]


@functools.lru_cache(maxsize=4)
def _text_backends(tokenizer: PreTrainedTokenizerBase) -> tuple[Tokenizer, Tokenizer, int]:
    """The tokenizer's own, but for text only and twice: for text that is NFC-normalised, and for any; and piece length.

    No string in a text is a control token: Qwen3 has some, `<think>` and `<|fim_prefix|>` among them, that are not
    marked special, and would be taken as such. Without looking for them, and without putting through normalisation what
    is normalised already, the library needs a seventh less time. Python's Unicode tables are never older than its own,
    so what Python takes as normalised stays as it is.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described |= {"padding": None, "truncation": None, "post_processor": None, "added_tokens": []}
    as_it_is = described | ({"normalizer": None} if described["normalizer"] == {"type": "NFC"} else {})
    splits = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    usual = USUAL_PIECE if splits in (described["pre_tokenizer"] or {}).get("pretokenizers", ()) else LONG_PIECE
    return Tokenizer.from_str(json.dumps(as_it_is)), Tokenizer.from_str(json.dumps(described)), usual


def split_text(text: str, usual: int, limit: int = LONGEST_PIECE) -> list[str]:
    """`text` in pieces of `usual` characters or more, at most `limit`, whose tokens laid end to end are the whole's.

    Cut behind a letter or number and before a space, line end or punctuation mark, where Qwen's pattern always begins
    another word, and normalisation does not reach across. Where there is no such place up to the limit (no text in any
    language does that), the cut comes there, and tokens may differ.
    """
    pieces, start = [], 0
    while len(text) - start > usual:
        end = min(start + limit, len(text))
        found = WORD_END.search(text, start + usual - 1, end)
        stop = found.end() if found else end
        pieces.append(text[start:stop])
        start = stop
    return [*pieces, text[start:]] if start < len(text) or not pieces else pieces
