"""The built-in points."""

from __future__ import annotations

from krs.hooks.points import ActivationPoint, Point, WeightPoint

MLP_COEF = ActivationPoint("mlp_coef", role="mlp_out_proj", label="MLP coefficients", side="input")
"""The MLP coefficients `m = f(W_K x)`, `[batch, position, n]`: the *input* of the MLP's output projection.

In a gated MLP this is `act(gate(x)) * up(x)`, never the output of the activation function alone.
"""

VALUE_VECTORS = WeightPoint("value_vectors", role="mlp_out_proj", label="Value vectors")
"""The value vectors `W_V`, `[n, d]`: the weight of the MLP's output projection. Its bias, where the
architecture has one (GPT-2, GPT-J …), is not part of it and stays the model's own."""

ATTN_OUT = ActivationPoint("attn_out", role="attn_out_proj", label="Attention outputs", side="output")
"""The attention output `A`, `[batch, position, d]`: what the attention module's output projection returns.

In hybrid models (Qwen3-Next, OLMo Hybrid, LFM2) it is the output of whatever mixes a layer's tokens: attention in some,
linear attention or a convolution in the others, which have no heads (`HEAD_OUT`, `ATTN_QUERY` …).

In post-norm families (OLMo2, Gemma2, Glm4) a norm follows before it is added to the residual stream.
"""

RESID = ActivationPoint("resid", role=".", label="Residual stream", side="output")
"""The residual stream behind a layer, `[batch, position, d]`: what the layer returns."""

RESID_PRE = ActivationPoint("resid_pre", role=".", label="Residual stream before", side="input")
"""The residual stream before a layer, `[batch, position, d]`: what the layer gets."""

MLP_OUT = ActivationPoint("mlp_out", role="mlp_out_proj", label="MLP outputs", side="output")
"""The MLP output `M`, `[batch, position, d]`: what the MLP's output projection returns, its bias included."""

HEAD_OUT = ActivationPoint("head_out", role="attn_out_proj", label="Head outputs", side="input", heads_of="query")
"""What the attention heads put out, `[batch, position, heads * head size]`: the *input* of the attention's output
projection. `HEAD_OUT.heads(3, 5)` is two of them. Where a gate multiplies it (Qwen3-Next), behind the gate."""

ATTN_QUERY = ActivationPoint("attn_query", role="attn_query", label="Queries", side="output", heads_of="query")
"""The queries, `[batch, position, heads * head size]`: what their projection returns, before rotary positions and
before a norm on them. The slice of a fused projection where the family has one."""

ATTN_KEY = ActivationPoint("attn_key", role="attn_key", label="Keys of the attention", side="output", heads_of="key")
"""The keys of the attention, `[batch, position, key-value heads * head size]`, as `ATTN_QUERY`."""

ATTN_VALUE = ActivationPoint(
    "attn_value", role="attn_value", label="Values of the attention", side="output", heads_of="key"
)
"""The values of the attention, `[batch, position, key-value heads * head size]`, as `ATTN_QUERY`."""

ATTN_ADDED = ActivationPoint("attn_added", role="attn_added", label="Attention's additions", side="output")
"""What the attention adds to the residual stream, `[batch, position, d]`: `ATTN_OUT` behind the norm that follows it in
post-norm families (OLMo2, Gemma2, Glm4), and `ATTN_OUT` itself elsewhere."""

MLP_ADDED = ActivationPoint("mlp_added", role="mlp_added", label="MLP's additions", side="output")
"""What the MLP adds to the residual stream, `[batch, position, d]`, as `ATTN_ADDED`."""

KEYS = WeightPoint("keys", role="mlp_in", label="Keys")
"""The MLP's keys `W_K`: the weights of its input projections, gate and up. Their biases stay the model's own."""

ATTN_WEIGHTS = WeightPoint("attn_weights", role="attn_weights", label="Attention weights")
"""The weights of the attention's projections: queries, keys, values and output. Their biases stay the model's own."""

NORMS = WeightPoint("norms", role="norms", label="Norms")
"""The weights of a layer's norms. A bias of theirs (LayerNorm) stays the model's own. The final norm, behind the last
layer, is not among them, nor is a norm of the embeddings."""

WEIGHTS = WeightPoint("weights", role=".", label="All weights of the layer", whole=True)
"""Every parameter of a layer, biases too: a layer of the other model on this model's residual stream."""

MOE_OUT = ActivationPoint("moe_out", role="moe_block", label="Mixture outputs", side="output")
"""What the experts of a mixture put out together, `[batch, position, d]`, weighted as the router says, with a shared
expert's part. Only in mixtures of experts. Coefficients of single experts are no value of any module there."""

EXPERTS = WeightPoint("experts", role="moe_experts", label="Experts", whole=True)
"""Every weight of the routed experts of a layer; the router and a shared expert stay the model's own."""

ROUTER = WeightPoint("router", role="moe_router", label="Router", whole=True)
"""The weights that choose among the experts of a layer and weigh them; a shared expert's gate is not among them."""

EMBEDDING = WeightPoint("embedding", role="embedding", label="Token embedding", place="embedding")
"""The weight of the token embedding, `[vocab, d]`: a row a token, so that `EMBEDDING.units(17)` is one token's vector.

It has no layer: `EMBEDDING.at()`. Whatever the model does with it before its first layer is the model's own: learned
positions, a norm, a factor, a projection. Where the embedding and the head are tied, only the embedding's use of the
weight is replaced, and the head keeps its own. `RESID_PRE.at(0)` is the activation: what the first layer gets."""

UNEMBEDDING = WeightPoint("unembedding", role="unembedding", label="Unembedding", place="unembedding")
"""The weight of the LM head, `[d, vocab]`, without the final norm before it and without its bias, which stay the
model's own, as do a scale and a soft cap of the logits.

It has no layer: `UNEMBEDDING.at()`. Where it is tied to the token embedding, only the head's use is replaced."""

BUILT_IN: tuple[Point, ...] = (
    MLP_COEF, VALUE_VECTORS, ATTN_OUT, RESID, RESID_PRE, MLP_OUT, HEAD_OUT, ATTN_QUERY, ATTN_KEY, ATTN_VALUE,
    ATTN_ADDED, MLP_ADDED, KEYS, ATTN_WEIGHTS, NORMS, WEIGHTS, MOE_OUT, EXPERTS, ROUTER, EMBEDDING, UNEMBEDDING,
)  # fmt: skip
