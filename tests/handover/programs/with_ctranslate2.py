"""ctranslate2's greedy texts beside those of transformers: FOLDERS; exit status 1 where they differ."""

import sys
import tempfile

import ctranslate2
import torch
from ctranslate2.converters import TransformersConverter
from transformers import AutoModelForCausalLM, AutoTokenizer

for folder in sys.argv[1:]:
    with tempfile.TemporaryDirectory() as converted:
        TransformersConverter(folder).convert(converted, force=True)
        generator = ctranslate2.Generator(converted, device="cpu", compute_type="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for text in ("stone river light", "The quick brown"):
        ids = tokenizer(text)["input_ids"]
        (found,) = generator.generate_batch(
            [tokenizer.convert_ids_to_tokens(ids)], max_length=24, sampling_topk=1, include_prompt_in_result=False
        )
        seen = torch.ones(1, len(ids), dtype=torch.int64)
        stock = model.generate(torch.tensor([ids]), attention_mask=seen, max_new_tokens=24, do_sample=False)
        written = stock[0, len(ids) :].tolist()
        written = written[:-1] if written[-1] == tokenizer.eos_token_id else written  # ctranslate2 leaves the end out
        same = found.sequences_ids[0] == written
        print(f"{folder}: {text!r}: {'the same' if same else 'ANOTHER'} text")
        if not same:
            sys.exit(1)
