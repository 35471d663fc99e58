"""What some version of transformers makes of model folders: FOLDERS -> OUT.json; runs in an environment of its own."""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

TEXTS = ["The quick stone, 12,345 café\n\n  rivers <|im_start|>?", "", "🪨 ﬁne e\u0301\t x"]
CHAT = [{"role": "user", "content": "Which word has number 7?"}]


def answers(folder: str) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer("stone river light metal cloud tower green amber", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids.repeat(1, 5)).logits[0]
    write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    how = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False}
    found = {
        "tokens": [tokenizer(text)["input_ids"] for text in TEXTS],
        "special": sorted(tokenizer.all_special_ids),
        "end": tokenizer.eos_token_id,
        "positions": tokenizer.model_max_length,
        "logits": logits.double().tolist(),
        "written": write("stone river", **how)[0]["generated_text"],
    }
    if tokenizer.chat_template:
        chat = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True)
        found |= {"asked": list(chat["input_ids"]), "answered": write(CHAT, **how)[0]["generated_text"]}
    return found


*folders, out = sys.argv[1:]
found = {"version": transformers.__version__, **{folder: answers(folder) for folder in folders}}
Path(out).write_text(json.dumps(found))
