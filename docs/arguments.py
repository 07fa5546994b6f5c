"""What every field of `transformers.TrainingArguments` does in two stages; `docs/tables.py` prints it as a table.

`tests/test_arguments.py` compares the fields with those of the installed transformers: for a new one somebody has to
decide here. It also tries what is said here: the fields in ONE_RUN together in a single run, the refused ones one by
one.
"""

from __future__ import annotations

from typing import NamedTuple

WORKS, REFUSED, NO_EFFECT = "works", "refused", "no effect"
MADE_FOR = "5.24"
"""The version of transformers of which all fields are here. Older ones lack some of them."""

SAME = "test_arguments.py::test_what_only_watches_or_names_changes_no_weight"
REACHED = "test_arguments.py::test_options_of_the_optimizer_and_the_data_reach_both_stages"
SENTENCE = "test_arguments.py::test_what_is_refused_is_answered_by_a_sentence"
OPTIONS = "test_training_options.py"
TRAINER = "test_trainer.py"
TWO = "test_processes.py::test_two_processes_of_accelerate_train_as_one"
SHARDED = "test_sharded.py::test_two_sharding_processes_train_as_one"
UNSHARDED = "test_processes.py::test_what_sharded_weights_allow"
HUB = "test_hub.py::test_both_stages_are_published_and_nothing_else"
CONVERTED = "test_drop_in.py::test_three_names_turn_a_trainer_script_into_two_stages"


class Argument(NamedTuple):
    """One field.

    Attributes:
        verdict: "works", "refused" or "no effect".
        words: what that means in two stages, or why, in a few words.
        shown_by: the test that shows it, as "FILE::NAME"; empty where the reason is all there is.
    """

    verdict: str
    words: str
    shown_by: str = ""


ARGUMENTS: dict[str, Argument] = {
    "output_dir": Argument(
        WORKS,
        "also holds the peak of stage 1",
        f"{TRAINER}::test_output_folder_holds_both_stages_and_no_pickle",
    ),
    # ---- duration and schedule ----
    "per_device_train_batch_size": Argument(
        WORKS, "the same in both stages", f"{OPTIONS}::test_gradient_accumulation_equals_the_large_batch"
    ),
    "num_train_epochs": Argument(
        WORKS,
        "the budget of both stages together",
        f"{OPTIONS}::test_stage_one_has_its_given_length_and_schedule",
    ),
    "max_steps": Argument(
        WORKS, "the budget of both stages together", f"{OPTIONS}::test_a_stream_of_rows_trains_in_two_stages"
    ),
    "learning_rate": Argument(
        WORKS, "the first rate of each stage", f"{OPTIONS}::test_stage_one_has_its_given_length_and_schedule"
    ),
    "lr_scheduler_type": Argument(
        WORKS, "a whole schedule in each stage", f"{OPTIONS}::test_the_schedule_of_stage_one_ends_with_it"
    ),
    "lr_scheduler_kwargs": Argument(
        WORKS,
        "of the schedule of both stages, if it is the same; steps count in each stage",
        f"{OPTIONS}::test_a_plateau_schedule_starts_again_too",
    ),
    "warmup_steps": Argument(
        WORKS,
        "in each stage anew",
        f"{TRAINER}::test_the_joint_stage_starts_with_a_fresh_optimizer_and_schedule",
    ),
    # ---- optimizer ----
    "optim": Argument(
        WORKS,
        "its state is cleared at stage 2",
        f"{OPTIONS}::test_every_optimizer_pauses_and_starts_stage_two_afresh",
    ),
    "optim_args": Argument(WORKS, "of the optimizers that read it; AdamW does not", REACHED),
    "weight_decay": Argument(
        WORKS,
        "not of what is paused",
        f"{TRAINER}::test_pausing_leaves_weights_and_optimizer_state_bit_identical",
    ),
    "adam_beta1": Argument(WORKS, "reaches the optimizer", REACHED),
    "adam_beta2": Argument(WORKS, "reaches the optimizer", REACHED),
    "adam_epsilon": Argument(WORKS, "reaches the optimizer", REACHED),
    "optim_target_modules": Argument(
        NO_EFFECT, "only optimizers such as GaLore read it, which are packages of their own", SAME
    ),
    "gradient_accumulation_steps": Argument(
        WORKS, "equals the larger batch", f"{OPTIONS}::test_gradient_accumulation_equals_the_large_batch"
    ),
    "average_tokens_across_devices": Argument(NO_EFFECT, "losses are means over rows, not over tokens", SAME),
    "max_grad_norm": Argument(
        WORKS,
        "clips each modality by itself",
        f"{OPTIONS}::test_one_modalitys_gradient_never_scales_anothers",
    ),
    "label_smoothing_factor": Argument(
        WORKS, "of every head", f"{TRAINER}::test_label_smoothing_reaches_every_head"
    ),
    # ---- precision, memory, compilation ----
    "bf16": Argument(WORKS, "float32 weights", f"{OPTIONS}::test_bfloat16_trains_float32_weights"),
    "fp16": Argument(
        WORKS,
        "with its loss scale; one strategy refuses it",
        f"{OPTIONS}::test_float16_scales_the_loss_and_clips_what_is_unscaled",
    ),
    "bf16_full_eval": Argument(WORKS, "scores and probe of a half-precision model"),
    "fp16_full_eval": Argument(WORKS, "scores and probe of a half-precision model"),
    "tf32": Argument(WORKS, "a setting of torch for GPUs", SAME),
    "activation_checkpointing": Argument(
        WORKS,
        "in every encoder that has it",
        f"{OPTIONS}::test_gradient_checkpointing_computes_the_same_and_runs_layers_again",
    ),
    "activation_checkpointing_kwargs": Argument(WORKS, "given on to every encoder"),
    "gradient_checkpointing": Argument(
        WORKS,
        "the older name of activation_checkpointing",
        f"{OPTIONS}::test_gradient_checkpointing_computes_the_same_and_runs_layers_again",
    ),
    "gradient_checkpointing_kwargs": Argument(WORKS, "the older name of activation_checkpointing_kwargs"),
    "torch_compile": Argument(
        WORKS,
        "compiled anew where the active modalities change",
        f"{OPTIONS}::test_a_compiled_model_trains_as_the_plain_one",
    ),
    "torch_compile_backend": Argument(
        WORKS, "given to torch.compile", f"{OPTIONS}::test_a_compiled_model_trains_as_the_plain_one"
    ),
    "torch_compile_mode": Argument(WORKS, "given to torch.compile"),
    "use_liger_kernel": Argument(
        NO_EFFECT, "its kernels are for language models by name; it needs the package"
    ),
    "liger_kernel_config": Argument(NO_EFFECT, "options of use_liger_kernel", SAME),
    "use_cache": Argument(NO_EFFECT, "nothing is generated", SAME),
    "neftune_noise_alpha": Argument(WORKS, "noise in the text encoder, or a sentence where there is not one"),
    "torch_empty_cache_steps": Argument(WORKS, "memory of the device alone", SAME),
    "auto_find_batch_size": Argument(
        WORKS,
        "a restart with smaller batches begins with stage 1",
        "test_plain_mistakes.py::test_memory_that_is_used_up_is_no_mistake_of_the_inputs",
    ),
    # ---- logs ----
    "logging_strategy": Argument(
        WORKS, "as everywhere", f"{OPTIONS}::test_tensorboard_sees_stage_modalities_and_the_cost_of_probes"
    ),
    "logging_steps": Argument(
        WORKS, "as everywhere", f"{OPTIONS}::test_norms_are_logged_by_modality_and_in_all"
    ),
    "logging_first_step": Argument(WORKS, "as everywhere", SAME),
    "log_on_each_node": Argument(WORKS, "as everywhere", SAME),
    "logging_nan_inf_filter": Argument(NO_EFFECT, "a loss that is no number ends the run", SAME),
    "include_num_input_tokens_seen": Argument(REFUSED, "modalities have no common count of tokens", SENTENCE),
    "log_level": Argument(WORKS, "as everywhere", SAME),
    "log_level_replica": Argument(WORKS, "as everywhere", SAME),
    "disable_tqdm": Argument(
        WORKS,
        "None is True where the output is no terminal",
        "test_surface.py::test_bars_are_for_terminals_and_lines_for_log_files",
    ),
    "report_to": Argument(
        WORKS,
        "with values by modality",
        f"{OPTIONS}::test_tensorboard_sees_stage_modalities_and_the_cost_of_probes",
    ),
    "run_name": Argument(WORKS, "given to the tracker", SAME),
    "project": Argument(WORKS, "given to the tracker", SAME),
    "trackio_space_id": Argument(WORKS, "given to the tracker", SAME),
    "trackio_bucket_id": Argument(WORKS, "given to the tracker", SAME),
    "trackio_static_space_id": Argument(WORKS, "given to the tracker", SAME),
    # ---- evaluations, which are probes ----
    "eval_strategy": Argument(WORKS, "when to probe; 'no' is refused with a stage 1", SENTENCE),
    "eval_steps": Argument(
        WORKS, "steps between probes", f"{OPTIONS}::test_a_stream_of_rows_trains_in_two_stages"
    ),
    "eval_delay": Argument(
        WORKS,
        "stage 1 still ends by its largest share",
        "test_arguments.py::test_stage_one_ends_although_evaluations_are_put_off",
    ),
    "per_device_eval_batch_size": Argument(WORKS, "changes no measurement"),
    "prediction_loss_only": Argument(REFUSED, "a probe needs the embeddings", SENTENCE),
    "eval_on_start": Argument(WORKS, "a probe before the first step"),
    "eval_do_concat_batches": Argument(REFUSED, "a probe needs all rows at once", SENTENCE),
    "eval_use_gather_object": Argument(WORKS, "as everywhere", SAME),
    "eval_accumulation_steps": Argument(WORKS, "moves outputs to the CPU earlier", SAME),
    "include_for_metrics": Argument(WORKS, "reaches compute_metrics", SAME),
    "batch_eval_metrics": Argument(REFUSED, "a probe needs all rows at once", SENTENCE),
    # ---- checkpoints ----
    "save_only_model": Argument(WORKS, "such a checkpoint cannot be resumed exactly"),
    "save_strategy": Argument(WORKS, "'best' counts in stage 2", SAME),
    "save_steps": Argument(WORKS, "as everywhere", f"{OPTIONS}::test_float16_resumes_with_its_loss_scale"),
    "save_on_each_node": Argument(WORKS, "as everywhere", SAME),
    "save_total_limit": Argument(
        WORKS,
        "the peak that a checkpoint needs is in it",
        f"{OPTIONS}::test_early_stopping_counts_in_stage_two_only",
    ),
    "enable_jit_checkpoint": Argument(WORKS, "a checkpoint at SIGTERM, as at any step", SAME),
    "load_best_model_at_end": Argument(
        WORKS, "the best of stage 2", f"{TRAINER}::test_the_best_model_at_the_end_is_a_joint_one"
    ),
    "metric_for_best_model": Argument(
        WORKS, "any logged value; a misspelt one is named", f"{TRAINER}::test_bad_arguments_are_named"
    ),
    "greater_is_better": Argument(
        WORKS,
        "None is False for losses and calibration errors",
        "test_arguments.py::test_less_calibration_error_is_better",
    ),
    "ignore_data_skip": Argument(WORKS, "a resumed run then sees rows again, and differs", SAME),
    "restore_callback_states_from_checkpoint": Argument(
        REFUSED, "must stay True: the controller's state is one of them", SENTENCE
    ),
    "resume_from_checkpoint": Argument(
        NO_EFFECT, "read by scripts alone, as everywhere; the recipe's does", SAME
    ),
    # ---- the Hub ----
    "push_to_hub": Argument(WORKS, "both stages, at the end", HUB),
    "hub_token": Argument(
        WORKS,
        "is never published",
        "test_hub.py::test_no_byte_that_was_sent_names_a_local_path_the_token_or_the_environment",
    ),
    "hub_private_repo": Argument(
        WORKS,
        "if the repository is made",
        "test_hub.py::test_a_push_that_breaks_off_in_the_middle_can_be_repeated",
    ),
    "hub_model_id": Argument(WORKS, "the name of the repository", HUB),
    "hub_strategy": Argument(REFUSED, "must stay 'end': the others publish pickles", SENTENCE),
    "hub_always_push": Argument(NO_EFFECT, "only of strategies that push while training", SAME),
    "hub_revision": Argument(WORKS, "the branch of the final model", SAME),
    # ---- seeds and devices ----
    "full_determinism": Argument(WORKS, "torch's deterministic algorithms; nothing draws beside the seeds"),
    "seed": Argument(
        WORKS,
        "rows, dropout, probes",
        f"{TRAINER}::test_a_resumed_run_ends_with_the_same_weights_and_decisions",
    ),
    "data_seed": Argument(WORKS, "the order of the rows alone", REACHED),
    "use_cpu": Argument(WORKS, "needed for several processes on CPUs", TWO),
    "accelerator_config": Argument(WORKS, "as everywhere", SAME),
    "parallelism_config": Argument(REFUSED, "a fusion model has no plan of tensor parallelism", SENTENCE),
    # ---- data ----
    "dataloader_drop_last": Argument(WORKS, "a set smaller than a batch is then empty", REACHED),
    "dataloader_num_workers": Argument(WORKS, "as everywhere", SAME),
    "dataloader_pin_memory": Argument(WORKS, "off where there is no accelerator", SAME),
    "dataloader_persistent_workers": Argument(WORKS, "as everywhere"),
    "dataloader_prefetch_factor": Argument(WORKS, "as everywhere", SAME),
    "dataloader_multiprocessing_context": Argument(WORKS, "as everywhere", SAME),
    "dataloader_in_order": Argument(WORKS, "False makes a run hard to repeat"),
    "remove_unused_columns": Argument(REFUSED, "must stay False: inputs are nested", SENTENCE),
    "label_names": Argument(REFUSED, "the labels are called 'labels'", SENTENCE),
    "train_sampling_strategy": Argument(
        WORKS, "'batch_rebalance' is refused: it counts the tokens of one text", SENTENCE
    ),
    "length_column_name": Argument(
        WORKS, "numbers, or numbers by modality", f"{OPTIONS}::test_lengths_of_several_modalities_count_alike"
    ),
    # ---- several processes ----
    "ddp_find_unused_parameters": Argument(
        REFUSED, "must not be False where a modality may be paused", SENTENCE
    ),
    "ddp_bucket_cap_mb": Argument(WORKS, "given to DistributedDataParallel", SAME),
    "ddp_broadcast_buffers": Argument(WORKS, "given to DistributedDataParallel", SAME),
    "ddp_static_graph": Argument(REFUSED, "a pause changes the graph", SENTENCE),
    "ddp_backend": Argument(WORKS, "gloo on CPUs is tried; with one process leave it out", TWO),
    "ddp_timeout": Argument(WORKS, "also how long end_training waits", SAME),
    "fsdp": Argument(WORKS, "version 2; version 1 is for joint training only", SHARDED),
    "fsdp_config": Argument(WORKS, "'SIZE_BASED_WRAP' and version 1 with a stage 1 are refused", SHARDED),
    "deepspeed": Argument(REFUSED, "with a stage 1; joint training only", UNSHARDED),
    # ---- the rest ----
    "debug": Argument(WORKS, "underflow_overflow is tried", SAME),
    "skip_memory_metrics": Argument(WORKS, "as everywhere", SAME),
    "do_train": Argument(NO_EFFECT, "read by scripts alone", SAME),
    "do_eval": Argument(NO_EFFECT, "read by scripts alone", SAME),
    "do_predict": Argument(NO_EFFECT, "read by scripts alone", SAME),
    "local_rank": Argument(NO_EFFECT, "set by the launcher", SAME),
}


def arguments_table() -> str:
    """One row per field, in the order above."""
    rows = ["| field | in two stages | | shown by |", "| --- | --- | --- | --- |"]
    for name, (verdict, words, shown_by) in ARGUMENTS.items():
        shown = f"[`{shown_by.split('::')[1]}`](../tests/{shown_by.split('::')[0]})" if shown_by else ""
        rows.append(f"| `{name}` | {verdict} | {words} | {shown} |")
    return "\n".join(rows)
