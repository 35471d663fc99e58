"""TRL's SFTTrainer going on from model folders: FOLDERS; fine-tuned ones on chats, trained on the answers alone."""

import sys
import tempfile

from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

for folder in sys.argv[1:]:
    chats = bool(AutoTokenizer.from_pretrained(folder).chat_template)
    marked = chats and "{% generation %}" in AutoTokenizer.from_pretrained(folder).chat_template
    turns = [{"role": "user", "content": "Which word?"}, {"role": "assistant", "content": "river"}]
    rows = [{"messages": turns} if chats else {"text": "stone river light"} for _ in range(8)]
    with tempfile.TemporaryDirectory() as output:
        config = SFTConfig(
            output_dir=output, max_steps=3, per_device_train_batch_size=2, learning_rate=1e-3, report_to=[],
            use_cpu=True, save_strategy="no", logging_steps=1, assistant_only_loss=marked, bf16=False, max_length=64,
        )  # fmt: skip
        trainer = SFTTrainer(model=folder, args=config, train_dataset=Dataset.from_list(rows))
        if marked:
            labels = next(iter(trainer.get_train_dataloader()))["labels"]
            tokenizer = trainer.processing_class
            for row in labels:
                assert tokenizer.decode(row[row != -100]) == f" river{tokenizer.eos_token}", row
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0], losses
    print(f"{folder}: loss {losses[0]:.4f} -> {losses[-1]:.4f}")
