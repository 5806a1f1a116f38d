"""A Llama with random weights in the form that each engine of this folder reads.

    python examples/engines/tiny_models.py

It is small enough to be made in a moment, with nothing from a hub: an example shows what its engine
does with requests, not what a model says. With a model of your own you need nothing of this file.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 64
WIDTH, INNER, HEADS, LAYERS = 32, 64, 2, 2
CONTEXT = 512
PAD, BOS, EOS = 0, 1, 2
TOKENS = ["<pad>", "<s>", "</s>", *(f"<{number}>" for number in range(3, VOCABULARY))]
EPSILON = 1e-6

Weights = dict[str, np.ndarray]


def weights(seed: int = 0) -> Weights:
    """Draw them: a table of 64 tokens, and two layers of attention and feed-forward.

    Matrices are `(out, in)`. Large weights keep the tokens of a reply from being all alike. All
    are exact in half precision, so that every engine has the same.
    """
    random = np.random.default_rng(seed)
    shapes = {"embedding": (VOCABULARY, WIDTH), "head": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        shapes |= {f"{layer}.{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "o")}
        shapes |= {f"{layer}.{name}": (INNER, WIDTH) for name in ("gate", "up")}
        shapes |= {f"{layer}.down": (WIDTH, INNER)}
    return {
        name: random.normal(0, 0.5, shape).astype(np.float16).astype(np.float32)
        for name, shape in shapes.items()
    }


def norm() -> np.ndarray:
    """Return the weights of a normalisation."""
    return np.ones(WIDTH, np.float32)


def for_ctranslate2(folder: Path, seed: int = 0) -> Path:
    """Write a model that `ctranslate2.Generator` reads."""
    from ctranslate2 import specs  # noqa: PLC0415 - each engine is a package of its own

    of = weights(seed)
    spec = specs.TransformerDecoderModelSpec.from_config(
        LAYERS,
        HEADS,
        activation=specs.Activation.SWISH,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
    )
    decoder = spec.decoder
    decoder.embeddings.weight, decoder.projection.weight = of["embedding"], of["head"]
    decoder.scale_embeddings = False
    decoder.layer_norm.gamma = norm()
    for number, layer in enumerate(decoder.layer):
        attention, feed_forward = layer.self_attention, layer.ffn
        attention.layer_norm.gamma = feed_forward.layer_norm.gamma = norm()
        attention.linear[0].weight = np.concatenate([of[f"{number}.{part}"] for part in "qkv"])
        attention.linear[1].weight = of[f"{number}.o"]
        feed_forward.linear_0.weight = of[f"{number}.gate"]
        feed_forward.linear_0_noact.weight = of[f"{number}.up"]
        feed_forward.linear_1.weight = of[f"{number}.down"]
    spec.register_vocabulary(TOKENS)
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<s>", "</s>", "<pad>"
    spec.config.layer_norm_epsilon = EPSILON
    spec.validate()
    spec.save(str(folder))
    return folder


def as_gguf(path: Path, seed: int = 0) -> Path:
    """Write a file for llama.cpp, which OpenVINO GenAI reads, too."""
    import gguf  # noqa: PLC0415

    of = weights(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["< 3"])  # there has to be one
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token <= EOS else normal for token in range(VOCABULARY)])
    writer.add_pad_token_id(PAD)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(False)  # noqa: FBT003
    writer.add_chat_template("{{ messages[0]['content'] }}")

    writer.add_tensor("token_embd.weight", of["embedding"].astype(np.float16))
    writer.add_tensor("output.weight", of["head"].astype(np.float16))
    writer.add_tensor("output_norm.weight", norm())
    names = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
    names |= {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
    for layer in range(LAYERS):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", norm())
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", norm())
        for ours, theirs in names.items():
            matrix = of[f"{layer}.{ours}"].astype(np.float16)
            if ours in "qk":  # llama.cpp rotates pairs of neighbours, the others the two halves
                halves = matrix.reshape(HEADS, 2, -1, WIDTH)
                matrix = halves.swapaxes(1, 2).reshape(WIDTH, WIDTH)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


LAYER = """
    n{0} = SimplifiedLayerNormalization <axis = -1, epsilon = {epsilon}> (x{0}, norm)
    qkv{0} = MatMul (n{0}, w_qkv{0})
    a{0}, present_key_{0}, present_value_{0} = com.microsoft.GroupQueryAttention
        <num_heads = {heads}, kv_num_heads = {heads}, do_rotary = 1>
        (qkv{0}, , , past_key_{0}, past_value_{0}, lengths, total, cosines, sines)
    o{0} = MatMul (a{0}, w_o{0})
    y{0} = Add (x{0}, o{0})
    m{0} = SimplifiedLayerNormalization <axis = -1, epsilon = {epsilon}> (y{0}, norm)
    g{0} = MatMul (m{0}, w_gate{0})
    s{0} = Sigmoid (g{0})
    h{0} = Mul (g{0}, s{0})
    u{0} = MatMul (m{0}, w_up{0})
    f{0} = Mul (h{0}, u{0})
    d{0} = MatMul (f{0}, w_down{0})
    x{next} = Add (y{0}, d{0})
"""
GRAPH = """
<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
llama (int64[batch, new] input_ids, int64[batch, total] attention_mask, {inputs})
    => (float[batch, new, {vocabulary}] logits, {outputs}) {{
    one = Constant <value = int64[1] {{1}}> ()
    count = ReduceSum <keepdims = 0> (attention_mask, one)
    before = Sub (count, one)
    lengths = Cast <to = 6> (before)
    shape = Shape (attention_mask)
    index = Constant <value = int64 {{1}}> ()
    width = Gather (shape, index)
    total = Cast <to = 6> (width)
    x0 = Gather (embedding, input_ids)
    {layers}
    last = SimplifiedLayerNormalization <axis = -1, epsilon = {epsilon}> (x{end}, norm)
    logits = MatMul (last, w_head)
}}
"""


def for_onnxruntime(folder: Path, seed: int = 0) -> Path:
    """Write a folder that `onnxruntime_genai.Model` reads; its own builder makes the like."""
    import onnx  # noqa: PLC0415
    import onnx.numpy_helper  # noqa: PLC0415
    import onnx.parser  # noqa: PLC0415

    of = weights(seed)
    caches = list(itertools.product(("key", "value"), range(LAYERS)))
    shape = f"float[batch, {HEADS}, {{}}, {WIDTH // HEADS}]"
    inputs = ", ".join(f"{shape.format('past')} past_{kind}_{n}" for kind, n in caches)
    outputs = ", ".join(f"{shape.format('all')} present_{kind}_{n}" for kind, n in caches)
    settings = {"heads": HEADS, "epsilon": EPSILON, "vocabulary": VOCABULARY}
    layers = "".join(LAYER.format(n, next=n + 1, **settings) for n in range(LAYERS))
    model = onnx.parser.parse_model(
        GRAPH.format(layers=layers, inputs=inputs, outputs=outputs, end=LAYERS, **settings)
    )
    angles = np.outer(np.arange(CONTEXT), 10_000.0 ** -np.arange(0, 1, 2 * HEADS / WIDTH))
    constants = {"embedding": of["embedding"], "w_head": of["head"].T, "norm": norm()}
    constants |= {"cosines": np.cos(angles), "sines": np.sin(angles)}
    for layer in range(LAYERS):
        parts = [of[f"{layer}.{part}"] for part in "qkv"]
        constants[f"w_qkv{layer}"] = np.concatenate(parts).T
        for name in ("o", "gate", "up", "down"):
            constants[f"w_{name}{layer}"] = of[f"{layer}.{name}"].T
    for name, value in constants.items():
        array = np.ascontiguousarray(value, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    (folder / "genai_config.json").write_text(json.dumps(onnxruntime_config()))
    return folder


def onnxruntime_config() -> dict[str, Any]:
    """Return what onnxruntime-genai has to know about the graph."""
    sizes = {"head_size": WIDTH // HEADS, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
    decoder = {
        "session_options": {"provider_options": [], "intra_op_num_threads": 1},
        "filename": "model.onnx",
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        **sizes,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_%d",
            "past_value_names": "past_value_%d",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present_key_%d",
            "present_value_names": "present_value_%d",
        },
    }
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    model = {"type": "llama", "context_length": CONTEXT, "vocab_size": VOCABULARY, **ids}
    search = {"max_length": CONTEXT, "past_present_share_buffer": True}
    return {"model": {**model, "decoder": decoder}, "search": search}


def for_mlx(seed: int = 0) -> Any:
    """Return a model of mlx-lm."""
    import mlx.core as mx  # noqa: PLC0415
    from mlx_lm.models import llama  # noqa: PLC0415

    of = weights(seed)
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            intermediate_size=INNER,
            num_attention_heads=HEADS,
            rms_norm_eps=EPSILON,
            vocab_size=VOCABULARY,
            tie_word_embeddings=False,
        )
    )
    named = {"model.embed_tokens": of["embedding"], "lm_head": of["head"], "model.norm": norm()}
    for layer in range(LAYERS):
        path = f"model.layers.{layer}"
        named[f"{path}.input_layernorm"] = named[f"{path}.post_attention_layernorm"] = norm()
        for name in ("q", "k", "v", "o"):
            named[f"{path}.self_attn.{name}_proj"] = of[f"{layer}.{name}"]
        for name in ("gate", "up", "down"):
            named[f"{path}.mlp.{name}_proj"] = of[f"{layer}.{name}"]
    model.load_weights([(f"{name}.weight", mx.array(array)) for name, array in named.items()])
    return model


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=as_written).parse_args()
    print(f"{sum(array.size for array in weights().values())} random weights, {VOCABULARY} tokens")
