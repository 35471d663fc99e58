"""A LoRA adapter trained on model folders, saved, loaded again and merged: FOLDERS; assertions."""

import sys
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer("stone river light metal cloud", return_tensors="pt")["input_ids"]
    before = model(ids).logits.detach()
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses
    after = adapted.eval()(ids).logits.detach()
    with tempfile.TemporaryDirectory() as saved:
        adapted.save_pretrained(saved)
        stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.testing.assert_close(stock(ids).logits, before, rtol=0, atol=0)
        loaded = PeftModel.from_pretrained(stock, saved).eval()
        torch.testing.assert_close(loaded(ids).logits, after)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, after, rtol=1e-4, atol=1e-4)
    print(f"{folder}: loss {losses[0]:.4f} -> {losses[-1]:.4f}")
