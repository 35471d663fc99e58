"""Laws of the tokenizer: Qwen's splits, nothing lost, nothing forged, the same ids in stock transformers."""

from __future__ import annotations

import copy
import itertools
import json
import random
import sys
import unicodedata
from pathlib import Path

import pytest
import regex
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from miniqwen.errors import UserError
from miniqwen.model.tokenization_miniqwen import (
    LONGEST_PIECE,
    PATTERN,
    SPECIAL_TOKENS,
    USUAL_PIECE,
    WORD_END,
    document_encoder,
    encode_endings,
    encode_text,
    load_tokenizer,
    save_tokenizer,
    split_text,
    text_oddities,
    token_bytes,
    train_tokenizer,
)

WORDS = ["".join(random.Random(n).choices("stremdlv", k=6)) for n in range(60)]
TEXTS = [f"The {word} isn't {n} metres from the {word}'s edge.\n\n" for n, word in enumerate(WORDS * 2)]
TOKENIZER = train_tokenizer(TEXTS, 400)
# Of every kind the pattern tells apart: letters of several scripts, marks, digits, punctuation, spaces, line ends.
ODD = (
    "aZéßñ你好кλא" + "\u0301\u0308" + "059²٣½" + "'’.,!?-_#$€\u200d😀" + " \t\u00a0\u2003\u3000" + "\r\n\u2028\x00\x7f"
)
odd_texts = st.text(st.sampled_from(ODD + "stremdlv") | st.characters(codec="utf-8"), max_size=60)


def stock(text: str) -> list[int]:
    """The library's own tokens."""
    ids: list[int] = TOKENIZER.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def pieces(text: str) -> list[str]:
    """What the tokenizer's pre-tokenizer cuts a (normalised) text into."""
    return [text[start:stop] for _, (start, stop) in TOKENIZER.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(ODD + "stremdlv"), max_size=60))
def test_the_pre_tokenizer_cuts_where_the_pattern_says_by_the_regex_package(text: str) -> None:
    assert pieces(text) == regex.findall(PATTERN, text)


def test_the_pattern_cuts_as_qwens_tokenizers_do() -> None:
    assert pieces("I'LL pay 1024€ now") == ["I", "'LL", " pay", " ", "1", "0", "2", "4", "€", " now"]
    assert pieces("don't  stop...\n\n  x") == ["don", "'t", " ", " stop", "...\n\n", " ", " x"]


@settings(max_examples=300, deadline=None)
@given(odd_texts)
def test_every_text_comes_back_from_its_tokens_in_normal_form_c(text: str) -> None:
    assert TOKENIZER.decode(encode_text(TOKENIZER, text)) == unicodedata.normalize("NFC", text)


@settings(max_examples=100, deadline=None)
@given(st.lists(odd_texts, max_size=5))
def test_documents_are_their_texts_tokens_and_one_end_token(texts: list[str]) -> None:
    expected = [[*encode_text(TOKENIZER, text), TOKENIZER.eos_token_id] for text in texts]
    assert [tokens.tolist() for tokens in document_encoder(TOKENIZER)(texts)] == expected


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_a_special_token_spelled_in_a_text_stays_text(special: str) -> None:
    ids = encode_text(TOKENIZER, f"a {special} b")
    assert not set(ids) & set(TOKENIZER.all_special_ids)
    assert TOKENIZER.decode(ids) == f"a {special} b"


def test_half_a_surrogate_pair_is_encoded_as_a_question_mark() -> None:
    assert encode_text(TOKENIZER, json.loads('"a\\ud800b"')) == encode_text(TOKENIZER, "a?b")
    assert len(train_tokenizer([json.loads('"\\udfff"')], 300)) == 259


def test_chat_turns_have_special_tokens_also_after_documents_were_encoded() -> None:
    encode_text(TOKENIZER, "first")
    turns = [{"role": "user", "content": "hi"}]
    chat_ml = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    )
    ids = TOKENIZER.apply_chat_template(turns, chat_template=chat_ml)["input_ids"]
    start, end = TOKENIZER.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert (ids.count(start), ids.count(end), ids[0]) == (2, 1, start)


def test_the_vocabulary_has_the_size_asked_for_with_the_special_tokens_last() -> None:
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(400))
    assert TOKENIZER.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [397, 398, 399]
    assert TOKENIZER.eos_token == TOKENIZER.pad_token == "<|endoftext|>"


def test_a_text_with_too_few_pairs_gives_a_smaller_vocabulary_and_no_text_the_bytes_alone() -> None:
    assert 259 < len(train_tokenizer(["to and fro"] * 9, 5000)) < 275
    assert len(train_tokenizer([], 300)) == 259
    with pytest.raises(ValueError, match="259"):
        train_tokenizer(TEXTS, 258)


def test_every_token_stands_for_its_bytes_and_control_tokens_for_none() -> None:
    table = token_bytes(TOKENIZER)
    assert table is not None
    assert len(table) == 400
    for text in (*TEXTS[:20], ODD, "naïve 日本語 🪨\x00\x7f\u0085"):
        normal = unicodedata.normalize("NFC", text)
        assert table[encode_text(TOKENIZER, text)].sum() == len(normal.encode())
    assert [table[TOKENIZER.convert_tokens_to_ids(token)] for token in SPECIAL_TOKENS] == [0, 0, 0]
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.decoder = decoders.WordPiece()
    assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=words)) is None, "not written as bytes"


@settings(max_examples=200, deadline=None)
@given(odd_texts)
def test_the_bytes_of_any_text_s_tokens_are_exactly_the_bytes_of_the_text(text: str) -> None:
    table = token_bytes(TOKENIZER)
    assert table is not None
    (tokens,) = document_encoder(TOKENIZER)([text])
    assert table[tokens].sum() == len(unicodedata.normalize("NFC", text).encode())


def test_training_depends_on_the_texts_alone() -> None:
    assert train_tokenizer(iter(TEXTS), 400).get_vocab() == TOKENIZER.get_vocab()
    assert train_tokenizer(["other words altogether"] * 9, 400).get_vocab() != TOKENIZER.get_vocab()


def saved(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    save_tokenizer(tokenizer, folder)
    return folder


def test_the_saved_folder_names_its_special_tokens_as_transformers_4_and_5_both_read_them(tmp_path: Path) -> None:
    described = json.loads((saved(TOKENIZER, tmp_path) / "tokenizer_config.json").read_text())
    assert described["additional_special_tokens"] == ["<|im_start|>", "<|im_end|>"]
    assert "extra_special_tokens" not in described, "transformers 4 fails at a list"
    assert load_tokenizer(tmp_path).extra_special_tokens == TOKENIZER.extra_special_tokens


def test_stock_auto_tokenizer_reads_the_saved_folder_and_gives_the_same_ids(tmp_path: Path) -> None:
    stock = AutoTokenizer.from_pretrained(saved(TOKENIZER, tmp_path))
    ours = load_tokenizer(tmp_path)
    for text in (*TEXTS[:5], ODD, "cafe\u0301  \n\n12,345 <x>"):
        assert stock(text)["input_ids"] == encode_text(TOKENIZER, text) == encode_text(ours, text)
    assert stock.chat_template is None, "a new model is a base model"
    assert (stock.eos_token_id, stock.pad_token_id, len(stock)) == (397, 397, 400)
    cuts = json.loads((tmp_path / "tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"]
    assert cuts[0]["pattern"]["Regex"] == PATTERN
    alone = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert alone.encode(TEXTS[0]).ids == encode_text(TOKENIZER, TEXTS[0])


def test_a_folder_without_a_usable_tokenizer_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer to load"):
        load_tokenizer(tmp_path / "nothing")
    folder = saved(TOKENIZER, tmp_path / "endless")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": None, "pad_token": None}))
    with pytest.raises(UserError, match="no end token"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="no tokenizer that can be loaded"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer to load"):  # stock transformers makes one of 3 entries
        load_tokenizer(folder)


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab Zé1 .,'\n\t\u0301<|中。한\u00a0-_"), min_size=1, max_size=300), st.integers(8, 40))
def test_a_long_text_is_encoded_in_pieces_with_the_tokens_of_the_whole(text: str, limit: int) -> None:
    pieces = split_text(text, limit // 4, limit)
    assert "".join(pieces) == text
    assert all(pieces)
    assert max(map(len, pieces)) <= limit
    assert all(len(piece) >= limit // 4 for piece in pieces[:-1])
    if all(before[-1].isalnum() and behind[0] in " .,\n。\t" for before, behind in itertools.pairwise(pieces)):
        assert [token for piece in pieces for token in stock(piece)] == stock(text)


@settings(max_examples=300, deadline=None)
@given(st.lists(odd_texts, min_size=2, max_size=4))
def test_what_goes_on_with_a_text_has_the_tokens_of_both_joined(parts: list[str]) -> None:
    text, *endings = parts
    assert encode_endings(TOKENIZER, text, endings) == [encode_text(TOKENIZER, text + ending) for ending in endings]


def test_what_every_ending_shares_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module, asked = sys.modules[encode_endings.__module__], []
    encode = module._encode  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "_encode", lambda *words: asked.append(words[1]) or encode(*words))
    found = encode_endings(TOKENIZER, "A long question?\nAnswer:", [" red", " blue"])
    assert asked == [["A long question?\nAnswer", ": red", ": blue"]]
    assert found == [stock("A long question?\nAnswer: red"), stock("A long question?\nAnswer: blue")]
    other = Tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str())  # it splits otherwise: nothing is known of words
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    asked.clear()
    encode_endings(PreTrainedTokenizerFast(tokenizer_object=other), "A question?\nAnswer:", [" red"])
    assert asked == [["", "A question?\nAnswer: red"]]


def test_a_very_long_text_gives_the_tokens_of_its_words_and_one_without_a_word_end_is_encoded_too() -> None:
    text = " ".join(TEXTS) * (2 * LONGEST_PIECE // len(" ".join(TEXTS)) + 2)
    assert len(split_text(text, USUAL_PIECE)) > 200
    (tokens,) = document_encoder(TOKENIZER)([text])
    assert tokens.tolist() == [*stock(text), TOKENIZER.eos_token_id]
    (tokens,) = document_encoder(TOKENIZER)(["a" * (LONGEST_PIECE + 5)])
    assert TOKENIZER.decode(tokens[:-1]) == "a" * (LONGEST_PIECE + 5)


def test_no_added_token_comes_out_of_a_text_special_or_not_and_their_strings_are_counted() -> None:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    text = "<think> is <|im_start|> no <|endoftext|> control </think> token"
    assert tokenizer.convert_tokens_to_ids("<think>") in tokenizer(text)["input_ids"]  # what the library itself does
    tokens = encode_text(tokenizer, text)
    assert not set(tokens) & set(tokenizer.added_tokens_decoder)
    assert tokenizer.decode(tokens) == text
    count = text_oddities(tokenizer)
    assert count(text) == {"special_token_strings": 4}
    assert count("one \ud800 and \udfff") == {"replaced_surrogates": 2}
    assert count("nothing odd, \U0001f600 nor <b> here") == {}


def test_what_python_takes_as_normalised_the_tokenizers_own_normalisation_leaves_as_it_is() -> None:
    """Every character by itself, and behind a letter, which a mark would be put together with."""
    own = TOKENIZER.backend_tokenizer.normalizer
    texts = [text for code in range(0x110000) if not 0xD800 <= code < 0xE000 for text in (chr(code), f"a{chr(code)}")]
    normal = [text for text in texts if unicodedata.is_normalized("NFC", text)]
    assert 0.99 < len(normal) / len(texts) < 1
    together = "\n".join(normal)  # nothing is put together with a line end
    assert own.normalize_str(together) == together


@settings(max_examples=300, deadline=None)
@given(st.lists(odd_texts, min_size=1, max_size=4))
def test_documents_have_the_tokens_of_stock_transformers_normalised_or_not(texts: list[str]) -> None:
    assume(not any(token in text for token in SPECIAL_TOKENS for text in texts))  # which stay text with us alone
    texts += [f"{text} x" * 40 for text in texts]  # of several pieces, which are cut before a space at the latest
    assert [tokens[:-1].tolist() for tokens in document_encoder(TOKENIZER)(texts)] == [stock(text) for text in texts]


@pytest.mark.parametrize("behind", " \n.'")
def test_behind_every_letter_and_number_the_pre_tokenizer_splits_where_a_text_may_be_cut(behind: str) -> None:
    """It has Unicode tables of its own, which are older than Python's."""
    every = [chr(code) for code in range(0x110000) if chr(code).isalnum()]
    cut = [WORD_END.match(f"{one}{behind}") is not None for one in every]
    assert set(cut) == ({True} if behind != "'" else {False}), "nowhere before an apostrophe, which may begin a word"
    assert len(every) > 100_000
    splits = TOKENIZER.backend_tokenizer.pre_tokenizer.pre_tokenize_str("".join(f" {one}{behind}" for one in every))
    starts = {start for _, (start, _) in splits}
    assert behind == "'" or starts >= set(range(2, 3 * len(every), 3))
