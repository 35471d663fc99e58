"""What people paste from other programs: flags this project has not, and what to write here instead of each.

Promises: every field of `transformers.TrainingArguments` is a flag of train_loop.py or stands here (a test compares);
where a value says what is done here anyway, it is taken. Nothing is guessed. Costs: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from miniqwen.config.values import BARE


@dataclass(frozen=True)
class Pasted:
    """Another program's flag: what to write here, or why it is not needed; `taken`: values that are true here."""

    said: str
    taken: tuple[str, ...] = ()

    def problems(self, name: str, values: list[Any]) -> list[str]:
        """What is wrong with `--name VALUES`."""
        words = [str(True if value is BARE else value).lower() for value in values or [True]]
        return [] if words[-1] in self.taken else [f"--{name}: {self.said}"]


def _table(*rows: tuple[Any, ...]) -> dict[str, Pasted]:
    """{name: what to say of it} from rows of (names with spaces between them, what to say, values that are taken)."""
    return {name: Pasted(*row) for names, *row in rows for name in names.split()}


NO, YES = ("false", "none", "null", "0"), ("true", "1")
BATCH = "write --per_device_train_batch_size N, and --gradient_accumulation_steps M; N x M x devices make an update"
DTYPE = "write --bf16 or --fp16 for mixed precision; parameters rest in float32, and leave it out for that"
LENGTH = "write --max_seq_length for the longest example, or --block_size for blocks of text"
LOADER = "text is read ahead by threads, and the order of the data does not depend on how: leave it out"
WORKERS = "write --preprocessing_num_workers N: threads that read, tokenize and pack text ahead (pretraining)"
UPLOAD = "a run uploads nothing: when it has ended, `hf upload OWNER/NAME OUTPUT_DIR` does"
DDP = "what DDP needs is set here: leave it out"
WHERE = "say it to the launcher: accelerate launch --config_file accelerate_configs/... (see README)"
LOGS = "what a run says does not depend on a level: leave it out"
METRICS = "evaluation here measures loss, and accuracy where there are choices, one batch at a time: leave it out"
NO_LORA = "all parameters are trained, there are no adapters here: leave it out"
SCHEDULE = "write --min_lr_ratio R for where the rate ends, --decay_ratio R for how long warmup_stable_decay decays"
NO_CODE = "no code of a model or a data set is ever run: leave it out"
TOKEN = "tokens come from `hf auth login` or HF_TOKEN, not from a flag that others can read"
KERNELS = "the fastest kernels that keep documents apart are chosen by themselves: leave it out"
NO_PADDING = "rows hold no padding: leave it out"
TRACKIO = "Trackio's own variables say where it writes; add --report_to trackio"
DEVICE = "a GPU is used where one is visible: CUDA_VISIBLE_DEVICES chooses, and hides them where it is empty"
COMPUTING = "write --bf16 or --fp16; without them in float32"
FLOAT32 = ("float32", "fp32", "32", "auto", "no")
CHECKPOINTS = "write --save_steps N; the last update is always saved, and so is a new best model"

# Fields of transformers.TrainingArguments (5.x) that are no flag of train_loop.py.
TRAINING_ARGUMENTS = _table(
    ("lr_scheduler_kwargs", SCHEDULE),
    ("optim_args", "write --adam_beta1, --adam_beta2, --adam_epsilon; Muon has no settings"),
    ("optim_target_modules", "--optim muon takes the matrices of the layers by itself: leave it out"),
    ("average_tokens_across_devices",
     "the loss is always the mean over an update's tokens on all devices: leave it out", YES),
    ("label_smoothing_factor", "the loss is cross-entropy, without smoothing: leave it out", ("0", "0.0")),
    ("bf16_full_eval", "evaluation computes as training does: write --bf16", NO),
    ("fp16_full_eval", "evaluation computes as training does: write --fp16", NO),
    ("activation_checkpointing_kwargs gradient_checkpointing_kwargs",
     "--gradient_checkpointing recomputes each layer (non-reentrant), and has no settings: leave it out",
     ('{"use_reentrant": false}', "{'use_reentrant': false}")),
    ("torch_compile_backend", "write --torch_compile; its backend is inductor", ("inductor",)),
    ("torch_compile_mode", "write --torch_compile; its mode is default", ("default",)),
    ("use_liger_kernel", "the loss is computed in parts here, without a matrix of all logits: leave it out", NO),
    ("liger_kernel_config", "there are no Liger kernels here: leave it out"),
    ("use_cache", "training keeps no keys and values: leave it out", NO),
    ("neftune_noise_alpha", "embeddings are trained without noise: leave it out", NO),
    ("torch_empty_cache_steps", "memory is not given back between updates: leave it out, or lower the batch", NO),
    ("auto_find_batch_size",
     "the batch is part of what is trained, and not changed unasked: where memory runs out, the run says what "
     "to lower", NO),
    ("logging_strategy", "write --logging_steps N", ("steps",)),
    ("logging_first_step", "the first update is always logged: leave it out", YES),
    ("log_on_each_node", "one process tells for all: leave it out", NO),
    ("logging_nan_inf_filter",
     "an update whose loss is not finite is skipped and counted, see --max_bad_steps: leave it out"),
    ("include_num_input_tokens_seen", "tokens are always counted and logged: leave it out", (*YES, "all")),
    ("log_level log_level_replica", LOGS),
    ("disable_tqdm", "a progress bar is on a terminal only: leave it out (2> FILE for none)", NO),
    ("project", "the trackers' own variables name a project, such as WANDB_PROJECT"),
    ("trackio_space_id trackio_bucket_id trackio_static_space_id",
     TRACKIO),
    ("eval_delay", "write --eval_steps N; the first evaluation is at update N", ("0", "0.0")),
    ("prediction_loss_only eval_do_concat_batches eval_use_gather_object eval_accumulation_steps "
     "include_for_metrics batch_eval_metrics",
     METRICS),
    ("eval_on_start", "evaluate the model before training by a run of its own: --do_eval without --do_train", NO),
    ("save_only_model",
     "a checkpoint is always whole, so that a run can go on from it; --save_total_limit N keeps few of them", NO),
    ("save_strategy", CHECKPOINTS, ("steps",)),
    ("save_on_each_node", "one process writes, into a folder that all nodes see: leave it out", NO),
    ("enable_jit_checkpoint", "SIGTERM always saves before the run ends: leave it out", YES),
    ("push_to_hub hub_always_push", UPLOAD, NO),
    ("hub_token", f"{UPLOAD}; {TOKEN}"),
    ("hub_private_repo hub_model_id hub_strategy hub_revision", UPLOAD),
    ("ignore_data_skip",
     "a checkpoint knows its place in the data, and no text is read again to get there: leave it out", NO),
    ("restore_callback_states_from_checkpoint",
     "there are no callbacks, and a checkpoint is always restored whole: leave it out", NO),
    ("data_seed", "write --seed N: it is the seed of the data order too"),
    ("use_cpu", DEVICE, NO),
    ("accelerator_config parallelism_config", WHERE),
    ("dataloader_drop_last", "no data is left out: leave this out", NO),
    ("dataloader_num_workers", WORKERS),
    ("dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
     "dataloader_multiprocessing_context",
     LOADER),
    ("dataloader_in_order", "blocks always come in order: leave it out", YES),
    ("remove_unused_columns", "only the columns that are needed are read: leave it out", YES),
    ("label_names", "labels are made here from text and questions: leave it out"),
    ("train_sampling_strategy",
     "data is always shuffled by --seed, and rows hold no padding that lengths could save: leave it out", ("random",)),
    ("length_column_name", NO_PADDING),
    ("ddp_find_unused_parameters", DDP, NO),
    ("ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph", DDP),
    ("ddp_backend", "NCCL on GPUs and gloo on CPUs are chosen by themselves: leave it out"),
    ("ddp_timeout", "write --collective_timeout SECONDS"),
    ("fsdp_config", f"write --fsdp full_shard, or {WHERE}"),
    ("debug", "an update that is not finite is skipped, and bad_updates.json says what was in it: leave it out"),
    ("skip_memory_metrics", "memory is always measured: leave it out", NO),
    ("do_predict", "predictions for a split without answers: eval_loop.py --split NAME", NO),
)  # fmt: skip

# Flags of earlier versions of transformers, of its example scripts, TRL, nanoGPT, axolotl, LLaMA-Factory, and habits.
OF_OTHERS = _table(
    ("batch_size train_batch_size micro_batch_size global_batch_size per_device_batch_size device_batch_size "
     "total_batch_size",
     BATCH),
    ("eval_batch_size", "write --per_device_eval_batch_size N"),
    ("accumulate_grad_batches grad_accum", "write --gradient_accumulation_steps N"),
    ("grad_clip gradient_clipping clip_grad_norm max_norm", "write --max_grad_norm X"),
    ("max_iters num_steps num_iterations total_steps train_steps max_train_steps", "write --max_steps N"),
    ("max_tokens", "write --max_steps N: N x blocks of an update x --block_size are the tokens"),
    ("max_train_samples", "write --max_steps N, or --num_train_epochs with a fraction"),
    ("max_samples", "write --max_steps N for training, --max_eval_samples N for evaluation"),
    ("warmup", "write --warmup_steps N, or a fraction of all updates"),
    ("warmup_iters num_warmup_steps", "write --warmup_steps N"),
    ("lr_scheduler scheduler lr_schedule", "write --lr_scheduler_type NAME"),
    ("min_lr min_lr_rate num_decay_steps", SCHEDULE),
    ("optimizer", "write --optim adamw or --optim muon"),
    ("adafactor", "write --optim adamw or --optim muon", NO),
    ("momentum", "Muon has no settings: leave it out"),
    ("beta1", "write --adam_beta1 X"),
    ("beta2", "write --adam_beta2 X"),
    ("eps", "write --adam_epsilon X"),
    ("wd", "write --weight_decay X"),
    ("dropout", "the model has no dropout: leave it out", ("0", "0.0")),
    ("dtype torch_dtype", DTYPE, ("float32", "fp32", "auto")),
    ("precision", DTYPE, ("32", "fp32", "float32", "no")),
    ("mixed_precision", DTYPE, ("no", "fp32")),
    ("fp16_opt_level", "mixed precision is torch's own: write --fp16 or --bf16"),
    ("fp16_backend", "mixed precision is torch's own: write --fp16", ("auto", "amp")),
    ("half_precision_backend", "mixed precision is torch's own: write --fp16 or --bf16", ("auto", "amp")),
    ("attn_implementation",
     KERNELS, ("sdpa",)),
    ("use_flash_attention_2",
     KERNELS, NO),
    ("flash_attn", KERNELS),
    ("max_length seq_length seq_len sequence_len max_seq_len cutoff_len context_length model_max_length", LENGTH),
    ("sample_packing", "write --packing (fine-tuning); text is always packed"),
    ("model model_name base_model model_id pretrained_model_name_or_path", "write --model_path FOLDER"),
    ("config_name", "the model's folder has its configuration: leave it out; --dataset_config_name is a data set's"),
    ("tokenizer_name tokenizer", "the model's folder has its tokenizer: leave it out"),
    ("use_fast_tokenizer", "tokenizers are always the fast ones: leave it out", YES),
    ("trust_remote_code", NO_CODE, NO),
    ("low_cpu_mem_usage", "weights are read straight from safetensors: leave it out"),
    ("token", TOKEN),
    ("use_auth_token", TOKEN, NO),
    ("model_revision", "write --model_path FOLDER, of `hf download OWNER/NAME --revision R --local-dir FOLDER`"),
    ("dataset data", "write --dataset_name NAME"),
    ("datasets", "write --dataset_name NAME [NAME ...]"),
    ("data_path", "write --dataset_name FILE_OR_FOLDER"),
    ("train_file", "write --dataset_name FILE"),
    ("data_dir", "write --dataset_name FOLDER; --data_root is a mirror of the hub"),
    ("validation_file",
     "validation rows are held out of the training split, or name --validation_split of --dataset_name"),
    ("test_file", "eval_loop.py --dataset_name FILE evaluates on it"),
    ("dataset_config", "write --dataset_config_name NAME"),
    ("dataset_text_field text_field", "write --text_column NAME"),
    ("split", "write --train_split NAME, --validation_split NAME"),
    ("dataset_split", "write --train_split NAME"),
    ("val_split eval_split", "write --validation_split NAME"),
    ("validation_split_percentage val_set_size",
     "write --validation_blocks N (text); of questions a fixed share is held out where there is no split"),
    ("interleave_probs data_mix", "write --mixture NAME=SHARE,NAME=SHARE"),
    ("shuffle", "data is always shuffled, by --seed: leave it out", YES),
    ("group_by_length", NO_PADDING, NO),
    ("overwrite_cache", "what is cached goes by the hub's revision: leave it out", NO),
    ("pad_to_max_length", NO_PADDING, NO),
    ("num_workers num_proc dataset_num_proc", WORKERS),
    ("log_interval log_every", "write --logging_steps N"),
    ("logging_dir", "curves are in --output_dir: tensorboard --logdir shows all runs below a folder"),
    ("eval_interval eval_every", "write --eval_strategy steps --eval_steps N"),
    ("evaluate_during_training", "write --eval_strategy steps --eval_steps N", NO),
    ("save_interval save_every checkpointing_steps", "write --save_steps N"),
    ("save_safetensors", "weights are always safetensors: leave it out", YES),
    ("max_checkpoints", "write --save_total_limit N"),
    ("wandb use_wandb", "write --report_to wandb", NO),
    ("wandb_project", "write --report_to wandb, and WANDB_PROJECT=NAME in front of the command"),
    ("wandb_run_name", "write --report_to wandb --run_name NAME"),
    ("tensorboard", "write --report_to tensorboard"),
    ("with_tracking", "write --report_to NAME", NO),
    ("resume auto_resume", "write --resume_from_checkpoint auto", NO),
    ("out_dir output_path", "write --output_dir FOLDER"),
    ("overwrite", "write --overwrite_output_dir", NO),
    ("no_cuda", DEVICE, NO),
    ("device", DEVICE, ("auto",)),
    ("num_processes", "say it to the launcher, before train_loop.py: accelerate launch --num_processes N"),
    ("num_gpus", "say it to the launcher: accelerate launch --num_processes N"),
    ("zero_stage", f"write --deepspeed ds_configs/zero2.json, or {WHERE}"),
    ("sharded_ddp", "write --fsdp full_shard, or --deepspeed FILE"),
    ("fsdp_transformer_layer_cls_to_wrap", "write --fsdp full_shard; it wraps the layers by itself"),
    ("fsdp_min_num_params", "write --fsdp full_shard; it wraps the layers by itself", ("0",)),
    ("compile jit_mode_eval", "write --torch_compile", NO),
    ("torchdynamo", "write --torch_compile"),
    ("use_peft load_in_8bit load_in_4bit", NO_LORA, NO),
    ("lora_r lora_rank lora_alpha lora_dropout lora_target_modules adapter", NO_LORA),
    ("finetuning_type", NO_LORA, ("full",)),
    ("stage", "write --task pretrain or --task finetune, where the data set does not say it"),
    ("template prompt", "write --prompt_template TEXT"),
    ("mask_prompt completion_only_loss", "fine-tuning trains on the answers only: leave it out", YES),
    ("train_on_inputs", "fine-tuning trains on the answers only; --do_qa_format False trains on plain text", NO),
    ("evaluation_metric", "write --metric_for_best_model eval_loss or eval_accuracy"),
    ("early_stopping", "write --early_stopping_patience N", NO),
    ("patience", "write --early_stopping_patience N"),
    ("early_stopping_threshold", "any better evaluation counts; write --early_stopping_patience N", ("0", "0.0")),
    ("random_seed", "write --seed N"),
    ("past_index", "the model keeps no past: leave it out", ("-1",)),
    ("use_ipex", "CPUs compute with torch alone: leave it out", NO),
    ("tpu_num_cores", "there is no support of TPUs here: leave it out"),
    ("verbose", LOGS),
    ("push_to_hub_model_id push_to_hub_token", UPLOAD),
)  # fmt: skip

TRAINING = {**OF_OTHERS, **TRAINING_ARGUMENTS}

EVALUATING = _table(
    ("batch_size eval_batch_size", "write --per_device_eval_batch_size N"),
    ("tasks", "write --dataset_name sciq commonsenseqa; --protocol harness asks as lm-evaluation-harness does"),
    ("limit max_samples", "write --max_eval_samples N"),
    ("model model_name model_args", "write --model_path FOLDER"),
    ("output_path", "write --output_dir FOLDER"),
    ("dataset", "write --dataset_name NAME"),
    ("validation_split", "write --split NAME"),
    ("log_samples", "every question is always written: leave it out", YES),
    ("gen_kwargs", "write --max_new_tokens, --stop, --do_sample, --temperature, --top_p, --top_k"),
    ("max_length", "write --max_new_tokens N"),
    ("dtype torch_dtype", COMPUTING, FLOAT32),
    ("device", DEVICE, ("auto",)),
    ("trust_remote_code", NO_CODE, NO),
    ("do_eval", "eval_loop.py does nothing else: leave it out", YES),
)  # fmt: skip
GENERATING = _table(
    ("model model_name", "write --model_path FOLDER"),
    ("prompt", "a prompt stands without a flag, in quotes"),
    ("prompts", "prompts stand without a flag, each in quotes"),
    ("dtype torch_dtype", COMPUTING, FLOAT32),
    ("device", DEVICE, ("auto",)),
    ("max_length max_tokens", "write --max_new_tokens N"),
    ("do_sample", "write --temperature 1", NO),
    ("trust_remote_code", NO_CODE, NO),
)  # fmt: skip
SIZE = "write --size tiny, small, medium, base or large (see README)"
CREATING = _table(
    ("model_path", "write --output_dir FOLDER for where it goes; --from_pretrained NAME for where it comes from"),
    ("model_name_or_path model model_name", "write --from_pretrained NAME"),
    ("hidden_size num_layers num_hidden_layers n_layer n_embd n_head num_attention_heads", SIZE),
    ("dataset", "write --dataset_name NAME"),
    ("trust_remote_code", NO_CODE, NO),
)  # fmt: skip
PREPARING = _table(
    ("dataset", "write --dataset_name NAME"),
    ("trust_remote_code", NO_CODE, NO),
    ("output_dir", "write --download FOLDER for the files, --tokenize FOLDER for tokens"),
    ("num_proc", "files are read one after another: leave it out"),
    ("split", "all splits are looked at: leave it out"),
)  # fmt: skip
