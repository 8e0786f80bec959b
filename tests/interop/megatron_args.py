"""What stands beside the weights in a Megatron checkpoint: the pickled argparse.Namespace with its
enums, and the states of the random generators.

The classes live in modules that are made here under Megatron's names, so that pickle writes the
references a real file has. Importing this module registers them.
"""
import argparse
import enum
import io
import random
import sys
import types
from pathlib import PosixPath

import numpy as np
import torch


def _enum(modules, name, by_value=False, **members):
    """An enum found under several module names; pickled as Class(value) when `by_value` (Python up
    to 3.10 and from 3.12), as getattr(Class, 'name') otherwise (Python 3.11)."""
    cls = enum.Enum(name, members, module=modules[0])
    if by_value:
        cls.__reduce_ex__ = lambda self, protocol: (self.__class__, (self._value_,))
    else:
        cls.__reduce_ex__ = lambda self, protocol: (getattr, (self.__class__, self._name_))
    for module in modules:
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            sys.modules.setdefault(path, types.ModuleType(path))
        setattr(sys.modules[module], name, cls)
    return cls


ModelType = _enum(["megatron.core.enums"], "ModelType", encoder_or_decoder=1,
                  encoder_and_decoder=2)
OldModelType = _enum(["megatron.model.enums"], "ModelType", by_value=True, encoder_or_decoder=1,
                     encoder_and_decoder=2)
AttnBackend = _enum(["megatron.core.transformer.enums"], "AttnBackend", flash=1, fused=2,
                    unfused=3, local=4, auto=5)
PositionEmbeddingType = _enum(["megatron.enums"], "PositionEmbeddingType", by_value=True, rotary=1,
                              absolute=2, alibi=3)

# What torch.load(weights_only=True) must be told to accept.
SAFE_GLOBALS = [argparse.Namespace, PosixPath, ModelType, OldModelType, AttnBackend,
                PositionEmbeddingType, getattr, io.BytesIO, np.ndarray, np.dtype,
                np._core.multiarray._reconstruct, type(np.dtype(np.uint32))]

_COMMON = dict(
    adam_beta1=0.9, adam_beta2=0.95, adam_eps=1e-08, adlr_autoresume=False,
    adlr_autoresume_interval=1000, apply_query_key_layer_scaling=False,
    apply_residual_connection_post_layernorm=False, async_tensor_model_parallel_allreduce=True,
    attention_dropout=0.0, attention_softmax_in_fp32=False, barrier_with_L1_time=True,
    bert_binary_head=True, bert_load=None, bf16=False, bias_dropout_fusion=True,
    bias_gelu_fusion=True, biencoder_projection_dim=0, biencoder_shared_query_context_model=False,
    block_data_path=None, classes_fraction=1.0, clip_grad=1.0, consumed_train_samples=73241856,
    consumed_valid_samples=0, data_cache_path=None, data_impl="mmap", data_parallel_random_init=False,
    data_parallel_size=1, data_path=["1.0", "/data/corpus/train_text_document"],
    data_per_class_fraction=1.0, data_sharding=True, dataloader_type="single", DDP_impl="local",
    decoder_num_layers=None, decoder_seq_length=None, dino_bottleneck_size=256,
    dino_freeze_last_layer=1, dino_head_hidden_size=2048, dino_local_crops_number=10,
    dino_local_img_size=96, dino_norm_last_layer=False, dino_teacher_temp=0.07,
    dino_warmup_teacher_temp=0.04, dino_warmup_teacher_temp_epochs=30,
    distribute_saved_activations=False, distributed_backend="nccl", distributed_timeout_minutes=10,
    embedding_path=None, embedding_weights_in_fp32=False, empty_unused_memory_level=0,
    encoder_seq_length=64, end_weight_decay=0.1, eod_mask_loss=False, eval_interval=1000,
    eval_iters=10, evidence_data_path=None, exit_duration_in_mins=None, exit_interval=None,
    exit_on_missing_checkpoint=False, exit_signal_handler=False, finetune=False, fp16=False,
    fp16_lm_cross_entropy=False, fp32_residual_connection=False, fp8_amax_compute_algo="most_recent",
    fp8_amax_history_len=1, fp8_interval=1, fp8_margin=0, global_batch_size=1152,
    gradient_accumulation_fusion=True, head_lr_mult=1.0, hidden_dropout=0.0, hysteresis=2,
    ict_head_size=None, ict_load=None, img_h=224, img_w=224, indexer_batch_size=128,
    indexer_log_interval=1000, inference_batch_times_seqlen_threshold=512, init_method_std=0.02,
    init_method_xavier_uniform=False, initial_loss_scale=4294967296, iter_per_epoch=1250,
    layernorm_epsilon=1e-05, lazy_mpu_init=None, load="/checkpoints/run-7", local_rank=0,
    log_batch_size_to_tensorboard=False, log_interval=1, log_learning_rate_to_tensorboard=True,
    log_loss_scale_to_tensorboard=True, log_memory_to_tensorboard=False,
    log_num_zeros_in_grad=False, log_params_norm=False, log_timers_to_tensorboard=False,
    log_validation_ppl_to_tensorboard=False, log_world_size_to_tensorboard=False, loss_scale=None,
    loss_scale_window=1000, lr=0.00009, lr_decay_iters=None, lr_decay_samples=None,
    lr_decay_style="cosine", lr_warmup_fraction=None, lr_warmup_iters=2000, lr_warmup_samples=0,
    make_vocab_size_divisible_by=128, mask_factor=1.0, mask_prob=0.15, mask_type="random",
    masked_softmax_fusion=True, max_tokens_to_oom=12000, merge_file=None, micro_batch_size=1,
    min_loss_scale=1.0, min_lr=9e-06, mmap_warmup=False, no_load_optim=None, no_load_rng=None,
    no_persist_layer_norm=False, no_save_optim=None, no_save_rng=None, num_channels=3,
    num_classes=1000, num_layers_per_virtual_pipeline_stage=None, num_workers=2, onnx_safe=None,
    openai_gelu=False, optimizer="adam", override_opt_param_scheduler=False, patch_dim=16,
    perform_initialization=True, profile=False, profile_ranks=[0], profile_step_end=12,
    profile_step_start=10, query_in_block_prob=0.1, rampup_batch_size=None, rank=0,
    recompute_granularity=None, recompute_method=None, recompute_num_layers=1,
    reset_attention_mask=False, reset_position_ids=False, retriever_report_topk_accuracies=[],
    retriever_score_scaling=False, retriever_seq_length=256, retro_add_retriever=False,
    sample_rate=1.0, save="/checkpoints/run-7", save_interval=1000, scatter_gather_tensors_in_pipeline=True,
    seed=1234, seq_length=64, sequence_parallel=False, sgd_momentum=0.9, short_seq_prob=0.1,
    split="100,0,0", squared_relu=False, standalone_embedding_stage=False, start_weight_decay=0.1,
    tensorboard_dir=None, tensorboard_log_interval=1, tensorboard_queue_size=1000, test_data_path=None,
    timing_log_level=0, timing_log_option="minmax", titles_data_path=None, tokenizer_model=None,
    train_data_path=None, train_iters=63578, train_samples=None, transformer_impl="local",
    use_checkpoint_args=False, use_checkpoint_opt_param_scheduler=False,
    use_contiguous_buffers_in_local_ddp=True, use_cpu_initialization=None,
    use_distributed_optimizer=False, use_flash_attn=False, use_one_sent_docs=False,
    use_ring_exchange_p2p=False, valid_data_path=None, variable_seq_lengths=False,
    vision_backbone_type="vit", vision_pretraining=False, vision_pretraining_type="classify",
    vocab_extra_ids=0, vocab_file="/data/gpt2-vocab.json", weight_decay=0.1,
    weight_decay_incr_style="constant")


def namespace(geometry, layout):
    """args as the program that wrote a checkpoint of this layout would have pickled them."""
    g = geometry
    values = dict(_COMMON)
    rope, learned = g.position == "rope", g.position == "learned"
    values.update(
        num_layers=g.layers, encoder_num_layers=g.layers, hidden_size=g.hidden,
        ffn_hidden_size=g.ffn, num_attention_heads=g.heads, kv_channels=g.head_dim,
        max_position_embeddings=g.max_positions, seq_length=g.max_positions,
        encoder_seq_length=g.max_positions, padded_vocab_size=layout.vocab,
        make_vocab_size_divisible_by=layout.divisible_by, layernorm_epsilon=g.eps,
        params_dtype=g.dtype, bf16=g.dtype == torch.bfloat16, fp16=g.dtype == torch.float16,
        pipeline_model_parallel_split_rank=None, world_size=layout.tp * layout.pp,
        model_type=ModelType.encoder_or_decoder if layout.core else OldModelType.encoder_or_decoder)
    if layout.version in (None, 0, 1.0, 2.0):
        # Before 3.0 the tensor parallel size had another name.
        values.update(model_parallel_size=layout.tp)
        if layout.version == 2.0:
            values.update(pipeline_model_parallel_size=layout.pp)
    else:
        values.update(
            tensor_model_parallel_size=layout.tp, pipeline_model_parallel_size=layout.pp,
            transformer_pipeline_model_parallel_size=layout.pp,
            sequence_parallel=layout.sequence_parallel,
            virtual_pipeline_model_parallel_size=layout.vp if layout.vp > 1 else None,
            num_layers_per_virtual_pipeline_stage=(
                g.layers // (layout.pp * layout.vp) if layout.vp > 1 else None),
            untie_embeddings_and_output_weights=not g.tied, swiglu=g.gated,
            rotary_percent=1.0, use_rotary_position_embeddings=rope,
            add_position_embedding=learned)
        if g.family == "yuan":
            blocks = layout.blocks or [g.layers // layout.pp] * layout.pp
            values.update(
                norm_dtype="RMSNorm", position_embedding_type="rope", disable_bias_linear=True,
                use_lf_gate=True, lf_conv2d_group=1, lf_conv2d_num_pad=1, pipeline_blocks=blocks,
                pipeline_model_parallel_method="block" if layout.blocks else "uniform",
                pipeline_model_parallel_blocks=(
                    ",".join(map(str, blocks)) if layout.blocks else None),
                tokenizer_type="YuanTokenizer", tokenizer_model_path="/data/tokenizer",
                reset_position_ids=True, process_checkpoint=False, attention_projection_size=None)
        elif g.family == "bloom":
            values.update(
                position_embedding_type=PositionEmbeddingType.alibi, embed_layernorm=True,
                tokenizer_type="PretrainedFromHF", tokenizer_name_or_path="bigscience/tokenizer",
                glu_activation=None, bias_gelu_fusion=True, pad_vocab_size_to=None, deepspeed=layout.style == "deepspeed",
                deepspeed_config="/run/ds_config.json", zero_stage=0)
        else:
            values.update(
                position_embedding_type="rope" if rope else "learned_absolute",
                normalization=g.norm, norm_epsilon=g.eps, add_bias_linear=g.linear_bias,
                add_qkv_bias=g.qkv_bias, group_query_attention=g.kv_heads != g.heads,
                num_query_groups=g.kv_heads if g.kv_heads != g.heads else 1,
                rotary_base=int(g.rope_theta), rotary_interleaved=False,
                rotary_seq_len_interpolation_factor=None, num_experts=None,
                expert_model_parallel_size=1, context_parallel_size=1,
                openai_gelu=g.family == "gpt2",
                tokenizer_type="GPT2BPETokenizer" if g.family == "gpt2" else "Llama2Tokenizer")
    if layout.core:
        values.update(
            attention_backend=AttnBackend.auto, ckpt_format="torch", use_mcore_models=True,
            use_legacy_models=False, iteration=layout.iteration, moe_router_topk=2,
            moe_layer_freq=1, data_args_path=PosixPath("/data/args.txt"),
            dist_ckpt_format_deprecated=None, decoder_first_pipeline_num_layers=None,
            decoder_last_pipeline_num_layers=None, te_rng_tracker=False,
            pipeline_model_parallel_comm_backend=None, qk_layernorm=False,
            tensor_shapes=[torch.Size([g.max_positions, 1, g.hidden])], vocab_size=None,
            transformer_impl="transformer_engine" if layout.style == "core-te" else "local")
    return argparse.Namespace(**dict(sorted(values.items())))


def rng_state(generator):
    """One data-parallel rank's generators, as get_rng_state() of checkpointing.py collects them."""
    def cuda(n=16):
        return torch.randint(0, 256, (n,), dtype=torch.uint8, generator=generator)
    seed = int(torch.randint(2**31, (), generator=generator))
    return {
        "random_rng_state": random.Random(seed).getstate(),
        "np_rng_state": np.random.RandomState(seed).get_state(),
        "torch_rng_state": torch.Generator().manual_seed(seed).get_state(),
        "cuda_rng_state": cuda(),
        "rng_tracker_states": {"model-parallel-rng": cuda()},
    }
