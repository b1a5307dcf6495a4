"""The keys DeepSpeed 0.19.8 reads from its configuration, with their types.

DeepSpeed accepts a misspelt key in silence, so the tables here are the only check. They hold what a pipeline in this project's loop
can use; what DeepSpeed would accept and then ignore, what cannot work here, and what it has removed, is `Refused` with the reason. A
test compares the tables with the installed source, so that an upgrade of DeepSpeed that changes its keys is noticed.
"""

from typing import Any, Literal

from ds_configs.typed import Bounded, Refused

Table = dict[str, Any]

_DTYPE = Literal["fp32", "bf16", "fp16"]
COUNT = Bounded(int, 1)
NUMBER = Bounded(float, 0)

_ZERO_3 = Refused("it belongs to ZeRO stage 3, which cannot be combined with a pipeline. Remove it.")
_EXACT = Refused("masters and moments are always restored exactly, on another topology too. Remove it.")
_GONE = Refused("DeepSpeed 0.19 has removed it. Remove it here too.")
_OLD_OFFLOAD = Refused('it is the old spelling of "zero_optimization.offload_optimizer" and "offload_param". Use those.')

_ZERO_3_WITH_ALIAS = (
    *("prefetch_bucket_size", "param_persistence_threshold", "model_persistence_threshold", "max_live_parameters"),
    *("max_reuse_distance", "gather_16bit_weights_on_model_save", "module_granularity_threshold"),
    *("use_all_reduce_for_fetch_params", "allgather_sequential"),
)

ZERO: Table = {
    "stage": Literal[0, 1, 2, 3],
    "allgather_bucket_size": COUNT,
    "compute_grad_norm": Refused("the gradient norm is measured at every step, for clipping and for the log. Remove it."),
    "offload_param": _ZERO_3,
    "offload_optimizer": Refused(
        "the optimizer of a pipeline keeps its states on the rank's device. Remove it; more stages or replicas take less memory each."
    ),
    "load_from_fp32_weights": _EXACT,
    "elastic_checkpoint": _EXACT,
    **dict.fromkeys(
        (
            *("contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce"),
            *("allgather_partitions", "overlap_comm", "ignore_unused_parameters", "legacy_stage1"),
            *("round_robin_gradients", "parameter_alignment", "log_trace_cache_warnings", "enable_sanity_checks"),
        ),
        Refused("the optimizer of a pipeline does not read it: gradients are summed over the replicas once a step. Remove it."),
    ),
    "zenflow": Refused("ZenFlow offloads the optimizer's work and does not know pipelines. Remove it."),
    **dict.fromkeys(("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"), _OLD_OFFLOAD),
    **dict.fromkeys(("mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param"), _GONE),
    **dict.fromkeys(
        (
            *_ZERO_3_WITH_ALIAS,
            *(f"stage3_{name}" for name in _ZERO_3_WITH_ALIAS),
            *("stage3_gather_fp16_weights_on_model_save", "sub_group_size", "zero_hpz_partition_size"),
            *("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients"),
            *("memory_efficient_linear", "pipeline_loading_checkpoint", "override_module_apply"),
            *("save_muon_momentum_buffer_in_memory", "leaf_module"),
        ),
        _ZERO_3,
    ),
}

_MASTERS = Refused("masters, gradient sums and optimizer states are kept in fp32. Remove it.")

BF16: Table = {
    "enabled": bool | Literal["auto"],
    "immediate_grad_update": Refused("gradients are added to their fp32 sums at once; other topologies can only be resumed so. Remove it."),
    "check_grad_overflow": Refused("the optimizer of a pipeline always checks; training.non_finite says what follows. Remove it."),
    "bf16_master_weights_and_grads": _MASTERS,
    "bf16_optimizer_states": _MASTERS,
}

_SPLIT = Refused("it splits activations among tensor-parallel ranks, of which there are none here. Remove it.")

PIPELINE: Table = {
    "stages": COUNT,
    "partition": str,  # which ones there are says model/partition.py
    "activation_checkpoint_interval": Bounded(int, 0),
    "use_reentrant": Refused(
        "DeepSpeed's older way of recomputing loses the gradient of a stage that begins with tokens, and is never used here. Remove it.",
        harmless=False,  # as runs of before have recorded it
    ),
    "pipe_partitioned": _SPLIT,
    "grad_partitioned": _SPLIT,
    "seed_layers": Refused(
        "DeepSpeed would reseed before every layer of every forward, which gives equal dropout masks on all replicas "
        "and breaks exact resume. Layers are seeded from run.seed."
    ),
}

CHECKPOINT: Table = {
    "tag_validation": Literal["Ignore", "Warn", "Fail"],
    "load_universal": Refused("a checkpoint of another topology is recognised and read as it is. Remove it."),
    "use_node_local_storage": Refused("a resume reads all ranks' files; checkpoints must be on a path all hosts share. Remove it."),
    "parallel_write": {"pipeline_stage": bool},
    "checkpoint_serialization": Refused(
        "without it files have torch's old form, from which no other topology could go on and nothing could be exported. Remove it.",
        harmless=True,
    ),
    "writer": Refused("DeepSpeed's writers fail or write nothing under the pipeline engine; files are written by torch.save. Remove it."),
}

MONITORS: dict[str, Table] = {
    "tensorboard": {"enabled": bool, "output_path": str, "job_name": str},
    "csv_monitor": {"enabled": bool, "output_path": str, "job_name": str},
    "wandb": {"enabled": bool, "group": str, "team": str, "project": str},
}

_OWN_LOADER = Refused("the data comes from our own loader, which has no use for it. See the data section.")
_WEIGHTS = Refused('a run is bf16 with fp32 masters, or fp32, in all its parts. Set "bf16": {"enabled": true or false}.')
_NVME = Refused("it is for optimizer states on NVMe, which a pipeline does not have. Remove it.")
_MEASURED = Refused("the pipeline engine does not report it; speed, memory and FLOPs are in the log and in TensorBoard. Remove it.")
_AVERAGED = Refused("gradients are averaged over micro-batches and replicas. Remove it, or scale optimizer.params.lr.")

TOP_LEVEL: Table = {
    "train_batch_size": COUNT,
    "train_micro_batch_size_per_gpu": COUNT,
    "gradient_accumulation_steps": COUNT,
    "gradient_clipping": NUMBER,
    "steps_per_print": COUNT,
    "optimizer": {"type": str, "params": dict[str, Any], "legacy_fusion": Refused("it is for fp16. Remove it.")},
    "scheduler": {"type": str, "params": dict[str, Any]},
    "bf16": BF16,
    "fp16": Refused('pipelines here train in bf16 or fp32. Use "bf16": {"enabled": true}.', harmless={"enabled": False}),
    "torch_autocast": Refused('weights are cast once, not in every operation. Use "bf16": {"enabled": true}.'),
    "data_types": {"grad_accum_dtype": _DTYPE, "param_dtype": _WEIGHTS, "buffer_dtype": _WEIGHTS, "keep_in_fp32_modules": _WEIGHTS},
    "zero_optimization": ZERO,
    "zero_allow_untested_optimizer": bool,
    "zero_force_ds_cpu_optimizer": _NVME,
    "pipeline": PIPELINE,
    "checkpoint": CHECKPOINT,
    "activation_checkpointing": Refused(
        'a pipeline does not read it: what is recomputed is "pipeline.activation_checkpoint_interval". Use that.'
    ),
    "communication_data_type": Literal["fp32", "bf16"],
    "prescale_gradients": bool,
    "gradient_predivide_factor": Bounded(float, 0, exclusive=True),
    "gradient_allreduce_op": _AVERAGED,
    "disable_allgather": Refused("the optimizer of a pipeline does not read it. Remove it."),
    "dump_state": Refused("the resolved configuration is written to config.json in the run's folder. Remove it."),
    "disable_python_gc": bool,
    "wall_clock_breakdown": Refused(
        "a run of two stages ended with exit code 1 under it. Steps are timed in the log and in TensorBoard. Remove it."
    ),
    "memory_breakdown": _MEASURED,
    "log_level": Literal["debug", "info", "warning", "error", "critical"],
    "comms_logger": _MEASURED,
    "flops_profiler": _MEASURED,
    "timers": _MEASURED,
    "aio": _NVME,
    **MONITORS,
    "comet": Refused("our writer knows tensorboard, csv_monitor and wandb. Use one of those."),
    "bfloat16": Refused('it is the old spelling of "bf16". Use that.'),
    "vocabulary_size": Refused('the vocabulary is "model.vocab_size". Set that.'),
    "data_parallel_size": Refused("the number of replicas is the number of processes / pipeline.stages. Remove it."),
    "datastates_ckpt": Refused("checkpoints are written and published by our own protocol. Remove it."),
    "weight_quantization": Refused("it is for inference. Remove it."),
    "autotuning": Refused("it starts runs of its own with DeepSpeed's launcher and knows nothing of these files. Remove it."),
    "data_efficiency": _OWN_LOADER,
    "dataloader_drop_last": _OWN_LOADER,
    **dict.fromkeys(
        (
            *("managed_gradient_accumulation", "tensor_parallel", "expert_parallel"),
            *("use_data_before_expert_parallelism", "sequence_parallel_size", "seq_parallel_communication_data_type"),
            *("hybrid_engine", "compile"),
        ),
        Refused("it does not work with the pipeline engine. Remove it."),
    ),
    **dict.fromkeys(
        (
            *("nebula", "compression_training", "amp", "quantize_training", "sparse_gradients", "eigenvalue"),
            *("sparse_attention", "elasticity", "graph_harvesting", "curriculum_learning", "progressive_layer_drop"),
        ),
        _GONE,
    ),
}
