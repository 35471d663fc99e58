"""llama.cpp's tokens and greedy texts beside those of transformers: FOLDER GGUF ...; exit status 1 where others."""

import itertools
import json
import sys
import urllib.request

import torch
import xllamacpp
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = [
    "stone river light", "The quick brown", "Article 7\n\nstone river. Light metal", "don't I'll we've 12345 6.7e8",
    "  two  spaces\tand a tab \n\n\n three lines", "naïve café – “quoted” … 100 %", "中文句子，没有空格。",
    "Привет, мир!",
    "emoji 😀👍🏽 and \u200b zero width", "<|endoftext|> and <|im_start|> as text", "", " ", "x" * 300,
]  # fmt: skip
WRITTEN = 20


def asked(server: xllamacpp.Server, path: str, **body: object) -> dict:
    request = urllib.request.Request(f"{server.listening_address}/{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def up_to_the_end(tokens: list[int]) -> list[int]:
    """llama.cpp ends at each token that ends a turn, transformers at the one that is named."""
    return list(itertools.takewhile(lambda token: token not in tokenizer.all_special_ids, tokens))


folder, *files = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
for file in files:
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel, params.warmup, params.port = 256, 1, False, 0
    params.cpuparams.n_threads = 1
    # as transformers computes: keys and values in fp32
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.verbosity = -1
    server = xllamacpp.Server(params)
    same_tokens = same_texts = told = 0
    for text in TEXTS:
        ours = tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
        theirs = asked(server, "tokenize", content=text, add_special=False, parse_special=False)["tokens"]
        same_tokens += ours == theirs
        if ours != theirs:
            print(f"{file}: {text!r}: ours {ours}, llama.cpp's {theirs}")
        if not ours or len(ours) > 200:
            continue
        told += 1
        ids, seen = torch.tensor([ours]), torch.ones(1, len(ours), dtype=torch.int64)
        stock = model.generate(ids, attention_mask=seen, max_new_tokens=WRITTEN, do_sample=False, pad_token_id=0)
        wanted = stock[0, len(ours) :].tolist()
        found = asked(
            server,
            "completion",
            prompt=ours,
            n_predict=WRITTEN,
            temperature=0.0,
            return_tokens=True,
            cache_prompt=False,
        )
        wanted, written = (up_to_the_end(tokens) for tokens in (wanted, found["tokens"]))
        same_texts += written == wanted
        if written != wanted:
            print(f"{file}: {text!r}: transformers {wanted}, llama.cpp {written}")
    print(f"{file}: equal tokens on {same_tokens} of {len(TEXTS)} texts, equal greedy texts on {same_texts} of {told}")
    exact = not file.endswith("q8_0.gguf")  # of random weights, eight bits may choose another word
    if same_tokens < len(TEXTS) or (exact and same_texts < told):
        sys.exit(1)
