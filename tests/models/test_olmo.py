"""Checkpoints in the layout of `ai2-olmo`, written here and computed here as that package does it."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import embedding, layer_norm, linear, scaled_dot_product_attention, silu

import krs
from krs import KrsError
from krs.models.olmo import from_transformers, to_config, to_transformers
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

CONFIG = {
    "architectures": ["OLMoForCausalLM"],
    "model_type": "hf_olmo",
    "activation_type": "swiglu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_type": "sequential",
    "clip_qkv": None,
    "d_model": 16,
    "embedding_size": 64,
    "eos_token_id": 1,
    "include_bias": False,
    "layer_norm_eps": 1e-05,
    "layer_norm_type": "default",
    "layer_norm_with_affine": False,
    "max_sequence_length": 64,
    "mlp_hidden_size": 48,
    "mlp_ratio": 4,
    "multi_query_attention": False,
    "n_heads": 4,
    "n_kv_heads": None,
    "n_layers": 3,
    "pad_token_id": 1,
    "rope": True,
    "rope_full_precision": True,
    "scale_logits": False,
    "torch_dtype": "float32",
    "vocab_size": 61,
    "weight_tying": False,
}


def _weights(config):
    """As `OLMoForCausalLM.save_pretrained` names them; a quarter of a unit each, so that every part matters."""
    d, inside = config["d_model"], config["mlp_hidden_size"]
    shared = d // config["n_heads"] * (config["n_kv_heads"] or config["n_heads"])
    torch.manual_seed(0)
    rows = {"wte": (config["embedding_size"], d)}
    rows |= {} if config["weight_tying"] else {"ff_out": (config["embedding_size"], d)}
    for i in range(config["n_layers"]):
        shapes = {
            "att_proj": (d + 2 * shared, d),
            "attn_out": (d, d),
            "ff_proj": (inside, d),
            "ff_out": (d, inside // 2),
        }
        rows |= {f"blocks.{i}.{name}": shape for name, shape in shapes.items()}
    return {f"model.transformer.{name}.weight": torch.randn(shape) / 4 for name, shape in rows.items()}


def _rotated(x):
    """Rotary position embeddings over the halves of a head, `[head, pos, unit]`; the angles in fp32."""
    half = x.shape[-1] // 2
    frequencies = 1.0 / 10000.0 ** (torch.arange(half, dtype=torch.float32) / half)
    angles = torch.arange(x.shape[1], dtype=torch.float32)[:, None] * frequencies
    cos, sin = (f(angles).repeat(1, 2).to(x) for f in (torch.cos, torch.sin))
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def _norm(x):
    """Without weights, in fp32."""
    return layer_norm(x.float(), x.shape[-1:]).to(x)


def _logits(config, weights, ids):
    """The original block: norm without weights, fused projections, `silu(gate) * up` with up in the first half."""
    w = {name.removeprefix("model.transformer.").removesuffix(".weight"): v.double() for name, v in weights.items()}
    d, heads = config["d_model"], config["n_heads"]
    shared = config["n_kv_heads"] or heads
    x = embedding(ids, w["wte"])
    for i in range(config["n_layers"]):
        qkv = linear(_norm(x), w[f"blocks.{i}.att_proj"])
        if config["clip_qkv"]:
            qkv = qkv.clamp(-config["clip_qkv"], config["clip_qkv"])
        q, k, v = qkv.split([d, d // heads * shared, d // heads * shared], -1)
        q, k, v = (t.view(len(ids), -1, d // heads).transpose(0, 1) for t in (q, k, v))
        k, v = (t.repeat_interleave(heads // shared, 0) for t in (_rotated(k), v))
        attended = scaled_dot_product_attention(_rotated(q), k, v, is_causal=True)
        x = x + linear(attended.transpose(0, 1).reshape(len(ids), d), w[f"blocks.{i}.attn_out"])
        up, gate = linear(_norm(x), w[f"blocks.{i}.ff_proj"]).chunk(2, -1)
        x = x + linear(silu(gate) * up, w[f"blocks.{i}.ff_out"])
    return linear(_norm(x), w["wte"] if config["weight_tying"] else w["ff_out"])


def _save(folder, config, weights, pickled=False):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if pickled:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors")
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"weight_tying": True, "model_type": "olmo"},
        {"clip_qkv": 0.5},
        {"n_kv_heads": 2, "mlp_hidden_size": 32},
    ],
    ids=["7B", "1B (tied)", "clipped", "grouped"],
)
def test_logits_are_the_original_blocks_and_the_way_back_is_the_same_bytes(tmp_path, change):
    config = CONFIG | change
    weights = _weights(config)
    folder = _save(tmp_path / "m", config, weights, pickled=config["weight_tying"])
    model, tokenizer = krs.load(folder, dtype="float64")
    assert model.config.model_type == "olmo"
    assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    ids = torch.arange(3, 23)
    assert torch.allclose(model(ids[None]).logits[0], _logits(config, weights, ids), rtol=0, atol=1e-6)
    assert model.get_input_embeddings().weight.shape[0] == 64  # rows that pad the vocabulary stay
    as_stored, _ = krs.load(folder)
    assert as_stored.dtype == torch.float32
    back = from_transformers(as_stored.state_dict(), as_stored.config)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.filterwarnings("ignore:.*answers are empty")  # random weights say what they like
def test_a_pair_in_that_layout_is_swept_by_name(tmp_path):
    weights = _weights(CONFIG)
    _save(tmp_path / "v", CONFIG, weights)
    moved = {name: value + 0.05 * torch.randn_like(value) for name, value in weights.items()}
    _save(tmp_path / "u", CONFIG, moved)
    result = krs.sweep(tmp_path / "v", tmp_path / "u", ["the cat"], windows=1, n_tokens=3, progress=False)
    assert result.provenance["engine"] == "wavefront"
    assert result.krs.notna().all(axis=None)


def test_what_transformers_olmo_cannot_compute_is_refused(tmp_path):
    for name, value in {"attention_layer_norm": True, "activation_type": "gelu", "alibi": True}.items():
        with pytest.raises(KrsError, match=rf"has {name}=.*cannot compute .* converted to transformers"):
            to_config(CONFIG | {name: value})
    silent = {k: v for k, v in CONFIG.items() if k != "layer_norm_with_affine"}
    with pytest.raises(KrsError, match="has layer_norm_with_affine=True"):  # what ai2-olmo takes where nothing is said
        to_config(silent)
    assert to_config(CONFIG | {"eos_token_id": 0, "vocab_size": 50280})["eos_token_id"] == 50279


def test_checkpoints_that_are_not_whole_are_refused(tmp_path):
    from transformers import OlmoConfig

    config, weights = OlmoConfig(**to_config(CONFIG)), _weights(CONFIG)
    lacking = {name: value for name, value in weights.items() if "blocks.1.att_proj" not in name}
    with pytest.raises(KrsError, match="lacks the weight 'transformer.blocks.1.att_proj.weight': it is not whole"):
        to_transformers(lacking, config)
    with pytest.raises(KrsError, match="has, beside what OLMo is made of, the weight 'transformer.blocks.0.q_norm.we"):
        to_transformers(weights | {"model.transformer.blocks.0.q_norm.weight": torch.ones(16)}, config)
    short = weights | {"model.transformer.wte.weight": torch.ones(61, 16)}
    with pytest.raises(KrsError, match=r"has 61 rows, and its config.json says 64: they do not belong together"):
        to_transformers(short, config)
    folder = _save(tmp_path / "m", CONFIG, weights)
    with pytest.raises(KrsError, match="cannot be read layer by layer"):
        krs.load(folder, offload="disk")
