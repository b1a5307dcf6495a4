"""The keys DeepSpeed 0.19.8 reads from its configuration, with their types.

DeepSpeed accepts a misspelt key in silence, so the tables here are the only check. They hold what a pipeline in this project's loop
can use; what DeepSpeed would read but cannot work here, and what it has removed, is `Refused` with the reason. A test compares the
tables with the installed source, so that an upgrade of DeepSpeed that changes its keys is noticed.
"""

from typing import Any, Literal

from ds_configs.typed import AtLeast, Matching, Refused

Table = dict[str, Any]

_DTYPE = Literal["fp32", "bf16", "fp16"]
_COUNT = AtLeast(int, 1)
_NUMBER = AtLeast(float, 0)

_ZERO_OFFLOAD_PARAM: Table = {
    "device": Literal["none", "cpu", "nvme"],
    "nvme_path": str,
    "buffer_count": int,
    "buffer_size": int,
    "max_in_cpu": int,
    "pin_memory": bool,
}

_ZERO_OFFLOAD_OPTIMIZER: Table = {
    "device": Literal["none", "cpu", "nvme"],
    "nvme_path": str,
    "buffer_count": int,
    "pin_memory": bool,
    "pipeline_read": bool,
    "pipeline_write": bool,
    "fast_init": bool,
    "ratio": float,
    "super_offload": bool,
    "cpuadam_cores_perc": float,
}

_ZERO_3 = Refused("it belongs to ZeRO stage 3, which cannot be combined with a pipeline. Remove it.")
_GONE = Refused("DeepSpeed 0.19 has removed it. Remove it here too.")
_OLD_OFFLOAD = Refused('it is the old spelling of "zero_optimization.offload_optimizer" and "offload_param". Use those.')

ZERO: Table = {
    "stage": Literal[0, 1, 2, 3],
    "contiguous_gradients": bool,
    "reduce_scatter": bool,
    "reduce_bucket_size": _COUNT,
    "use_multi_rank_bucket_allreduce": bool,
    "allgather_partitions": bool,
    "allgather_bucket_size": _COUNT,
    "overlap_comm": bool,
    "compute_grad_norm": bool,
    "load_from_fp32_weights": bool,
    "elastic_checkpoint": bool,
    "offload_param": _ZERO_OFFLOAD_PARAM,
    "offload_optimizer": _ZERO_OFFLOAD_OPTIMIZER,
    "ignore_unused_parameters": bool,
    "legacy_stage1": bool,
    "round_robin_gradients": bool,
    "parameter_alignment": bool,
    "log_trace_cache_warnings": bool,
    "enable_sanity_checks": bool,
    "zenflow": Refused("ZenFlow offloads the optimizer's work and does not know pipelines. Remove it."),
    "cpu_offload": _OLD_OFFLOAD,
    "cpu_offload_param": _OLD_OFFLOAD,
    "cpu_offload_use_pin_memory": _OLD_OFFLOAD,
    "mics_shard_size": _GONE,
    "mics_hierarchical_params_gather": _GONE,
    "zeropp_loco_param": _GONE,
    **dict.fromkeys(
        (
            "sub_group_size",
            "prefetch_bucket_size",
            "param_persistence_threshold",
            "model_persistence_threshold",
            "max_live_parameters",
            "max_reuse_distance",
            "gather_16bit_weights_on_model_save",
            "module_granularity_threshold",
            "use_all_reduce_for_fetch_params",
            "allgather_sequential",
            "stage3_prefetch_bucket_size",
            "stage3_param_persistence_threshold",
            "stage3_model_persistence_threshold",
            "stage3_max_live_parameters",
            "stage3_max_reuse_distance",
            "stage3_gather_16bit_weights_on_model_save",
            "stage3_gather_fp16_weights_on_model_save",
            "stage3_module_granularity_threshold",
            "stage3_use_all_reduce_for_fetch_params",
            "stage3_allgather_sequential",
            "zero_hpz_partition_size",
            "zero_quantized_weights",
            "zero_quantized_nontrainable_weights",
            "zero_quantized_gradients",
            "memory_efficient_linear",
            "pipeline_loading_checkpoint",
            "override_module_apply",
            "save_muon_momentum_buffer_in_memory",
            "leaf_module",
        ),
        _ZERO_3,
    ),
}

BF16: Table = {
    "enabled": bool | Literal["auto"],
    "immediate_grad_update": bool,
    "check_grad_overflow": bool,
    "bf16_master_weights_and_grads": bool,
    "bf16_optimizer_states": bool,
}

FP16: Table = {
    "enabled": bool,
    "auto_cast": bool,
    "loss_scale": _NUMBER,
    "initial_scale_power": int,
    "loss_scale_window": _COUNT,
    "hysteresis": int,
    "consecutive_hysteresis": bool,
    "min_loss_scale": _COUNT,
    "fp16_master_weights_and_grads": bool,
}

PIPELINE: Table = {
    "stages": _COUNT,
    "partition": Matching("flops|measured|uniform|parameters|type:.+", "flops, measured, uniform, parameters or type:<regular expression>"),
    "activation_checkpoint_interval": AtLeast(int, 0),
    "use_reentrant": bool,
    "pipe_partitioned": bool,
    "grad_partitioned": bool,
    "seed_layers": Refused(
        "DeepSpeed would reseed before every layer of every forward, which gives equal dropout masks on all replicas "
        "and breaks exact resume. Layers are seeded from run.seed."
    ),
}

CHECKPOINT: Table = {
    "tag_validation": Literal["Ignore", "Warn", "Fail"],
    "load_universal": bool,
    "use_node_local_storage": Refused("a resume reads all ranks' files; checkpoints must be on a path all hosts share. Remove it."),
    "parallel_write": {"pipeline_stage": bool},
    "checkpoint_serialization": bool,
    "writer": Refused("DeepSpeed's writers fail or write nothing under the pipeline engine; files are written by torch.save. Remove it."),
}

MONITORS: dict[str, Table] = {
    "tensorboard": {"enabled": bool, "output_path": str, "job_name": str},
    "csv_monitor": {"enabled": bool, "output_path": str, "job_name": str},
    "wandb": {"enabled": bool, "group": str, "team": str, "project": str},
}

_OURS = "the data comes from our own loader, which has no use for it. See the data section."
_NO_PIPELINE = "it does not work with the pipeline engine. Remove it."

TOP_LEVEL: Table = {
    "train_batch_size": _COUNT,
    "train_micro_batch_size_per_gpu": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "gradient_clipping": _NUMBER,
    "steps_per_print": _COUNT,
    "optimizer": {"type": str, "params": dict[str, Any], "legacy_fusion": bool},
    "scheduler": {"type": str, "params": dict[str, Any]},
    "bf16": BF16,
    "fp16": FP16,
    "torch_autocast": Refused('weights are cast once, not in every operation. Use "bf16": {"enabled": true}.'),
    "data_types": {
        "grad_accum_dtype": _DTYPE,
        "param_dtype": _DTYPE,
        "buffer_dtype": _DTYPE,
        "keep_in_fp32_modules": Literal["auto"] | list[str],
    },
    "zero_optimization": ZERO,
    "zero_allow_untested_optimizer": bool,
    "zero_force_ds_cpu_optimizer": bool,
    "pipeline": PIPELINE,
    "checkpoint": CHECKPOINT,
    "activation_checkpointing": {
        "partition_activations": bool,
        "number_checkpoints": _COUNT,
        "contiguous_memory_optimization": bool,
        "cpu_checkpointing": bool,
        "synchronize_checkpoint_boundary": bool,
        "profile": bool,
    },
    "communication_data_type": _DTYPE,
    "prescale_gradients": bool,
    "gradient_predivide_factor": AtLeast(float, 0, exclusive=True),
    "gradient_allreduce_op": Literal["mean", "sum"],
    "disable_allgather": bool,
    "dump_state": bool,
    "disable_python_gc": bool,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "log_level": str,
    "comms_logger": {"enabled": bool, "prof_all": bool, "prof_ops": list[str], "verbose": bool, "debug": bool},
    "flops_profiler": {
        "enabled": bool,
        "recompute_fwd_factor": float,
        "profile_step": _COUNT,
        "module_depth": int,
        "top_modules": int,
        "detailed": bool,
        "output_file": str,
    },
    "timers": {"throughput": {"enabled": bool, "synchronized": bool}},
    "aio": {
        "block_size": _COUNT,
        "queue_depth": _COUNT,
        "intra_op_parallelism": _COUNT,
        "single_submit": bool,
        "overlap_events": bool,
        "use_gds": bool,
    },
    **MONITORS,
    "comet": Refused("our writer knows tensorboard, csv_monitor and wandb. Use one of those."),
    "bfloat16": Refused('it is the old spelling of "bf16". Use that.'),
    "vocabulary_size": Refused('the vocabulary is "model.vocab_size". Set that.'),
    "managed_gradient_accumulation": Refused(_NO_PIPELINE),
    "tensor_parallel": Refused(_NO_PIPELINE),
    "expert_parallel": Refused(_NO_PIPELINE),
    "use_data_before_expert_parallelism": Refused(_NO_PIPELINE),
    "sequence_parallel_size": Refused(_NO_PIPELINE),
    "data_parallel_size": Refused("the number of replicas is the number of processes / pipeline.stages. Remove it."),
    "seq_parallel_communication_data_type": Refused(_NO_PIPELINE),
    "hybrid_engine": Refused(_NO_PIPELINE),
    "compile": Refused(_NO_PIPELINE),
    "datastates_ckpt": Refused("checkpoints are written and published by our own protocol. Remove it."),
    "weight_quantization": Refused("it is for inference. Remove it."),
    "autotuning": Refused("it starts runs of its own with DeepSpeed's launcher and knows nothing of these files. Remove it."),
    "data_efficiency": Refused(_OURS),
    "dataloader_drop_last": Refused(_OURS),
    **dict.fromkeys(
        (
            "nebula",
            "compression_training",
            "amp",
            "quantize_training",
            "sparse_gradients",
            "eigenvalue",
            "sparse_attention",
            "elasticity",
            "graph_harvesting",
            "curriculum_learning",
            "progressive_layer_drop",
        ),
        _GONE,
    ),
}
