"""Which tensors a HeartMuLa checkpoint holds, and in which shapes: name -> shape, from its config.json.

Names are those that heartlib writes: torchtune's for the Llamas, vector_quantize_pytorch's for the quantiser,
torch's parametrizations for weight norm (original0 the norms, original1 the directions).
"""

from collections.abc import Iterator

from worker.models.heartmula_config import CodecConfig, Flavour, MulaConfig

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
_Rows = Iterator[tuple[str, Shape]]

# Says of each codebook that it is not empty: no weight. One number, and how it is stored depends on
# the version of vector_quantize_pytorch that a codec was saved with.
FLAG = "_codebook.initted"
FLAG_SHAPES: tuple[Shape, Shape] = ((), (1,))

_STEP_FEATURES = 512  # of the time step's sinusoids
_UNITS = 5  # residual units in a block, of dilation 1, 3, 5, 7, 9


def mula_shapes(config: MulaConfig) -> Shapes:
    """The language model's tensors."""
    width, depth_width = config.backbone.width, config.decoder.width
    return {
        "text_embeddings.weight": (config.text_vocab_size, width),
        "audio_embeddings.weight": (config.audio_vocab_size * config.audio_num_codebooks, width),
        "unconditional_text_embedding.weight": (1, width),
        "muq_linear.weight": (width, config.muq_dim),
        "muq_linear.bias": (width,),
        "projection.weight": (depth_width, width),
        "codebook0_head.weight": (config.audio_vocab_size, width),
        "audio_head": (config.audio_num_codebooks - 1, depth_width, config.audio_vocab_size),
        **dict(_llama("backbone", config.backbone)),
        **dict(_llama("decoder", config.decoder)),
    }


def codec_shapes(config: CodecConfig, flag: Shape = ()) -> Shapes:
    """The codec's tensors, with the quantiser's flags in the shape `flag`, one of FLAG_SHAPES."""
    return {
        **dict(_quantiser("flow_matching.vq_embed", config, flag)),
        **dict(_linear("flow_matching.cond_feature_emb", config.dim, config.dim)),
        "flow_matching.zero_cond_embedding1": (config.dim,),
        **dict(_estimator("flow_matching.estimator", config)),
        **dict(_encoder("scalar_model.encoder", config)),
        **dict(_decoder("scalar_model.decoder", config)),
    }


def _llama(name: str, sizes: Flavour) -> _Rows:
    keys = sizes.kv_heads * (sizes.width // sizes.heads)
    for layer in (f"{name}.layers.{n}" for n in range(sizes.layers)):
        yield f"{layer}.sa_norm.scale", (sizes.width,)
        yield f"{layer}.attn.q_proj.weight", (sizes.width, sizes.width)
        yield f"{layer}.attn.k_proj.weight", (keys, sizes.width)
        yield f"{layer}.attn.v_proj.weight", (keys, sizes.width)
        yield f"{layer}.attn.output_proj.weight", (sizes.width, sizes.width)
        yield f"{layer}.mlp_norm.scale", (sizes.width,)
        yield f"{layer}.mlp.w1.weight", (sizes.mlp, sizes.width)
        yield f"{layer}.mlp.w2.weight", (sizes.width, sizes.mlp)
        yield f"{layer}.mlp.w3.weight", (sizes.mlp, sizes.width)
    yield f"{name}.norm.scale", (sizes.width,)


def _quantiser(name: str, config: CodecConfig, flag: Shape) -> _Rows:
    if config.codebook_dim != config.dim:
        yield from _linear(f"{name}.project_in", config.dim, config.codebook_dim)
        yield from _linear(f"{name}.project_out", config.codebook_dim, config.dim)
    codebook = (1, config.codebook_size, config.codebook_dim)
    for n in range(config.num_quantizers):
        yield f"{name}.layers.{n}.{FLAG}", flag
        yield f"{name}.layers.{n}._codebook.cluster_size", codebook[:2]
        yield f"{name}.layers.{n}._codebook.embed_avg", codebook
        yield f"{name}.layers.{n}._codebook.embed", codebook


def _estimator(name: str, config: CodecConfig) -> _Rows:
    """Blocks of one width, then blocks of twice that width, which see the input again."""
    inputs, outputs = config.in_channels, config.out_channels
    width = config.num_attention_heads * config.attention_head_dim
    yield from _projection(f"{name}.proj_in", inputs, width)
    yield from _projection(f"{name}.connection_proj", inputs + width, 2 * width)
    yield from _projection(f"{name}.proj_out", 2 * width, outputs)
    for suffix, blocks, wide in (("", config.num_layers, width), ("_2", config.num_layers_2, 2 * width)):
        yield f"{name}.scale_shift_table{suffix}", (2, wide)
        step = f"{name}.adaln_single{suffix}"
        yield from _linear(f"{step}.emb.timestep_embedder.linear_1", _STEP_FEATURES, wide)
        yield from _linear(f"{step}.emb.timestep_embedder.linear_2", wide, wide)
        yield from _linear(f"{step}.linear", wide, 6 * wide)
        for n in range(blocks):
            yield from _block(f"{name}.transformer_blocks{suffix}.{n}", wide)


def _block(name: str, width: int) -> _Rows:
    hidden = -(-(8 * width // 3) // 256) * 256  # two thirds of four widths, in multiples of 256
    yield f"{name}.scale_shift_table", (6, width)
    yield f"{name}.attn_norm.weight", (width,)
    for projection in "qkvo":
        yield f"{name}.attn.{projection}_proj.weight", (width, width)
    yield f"{name}.mlp_norm.weight", (width,)
    yield f"{name}.mlp.gate.weight", (hidden, width)
    yield f"{name}.mlp.up.weight", (hidden, width)
    yield f"{name}.mlp.down.weight", (width, hidden)


def _encoder(name: str, config: CodecConfig) -> _Rows:
    width, layer = config.init_channel, 1
    yield from _normed_conv(f"{name}.0", config.num_bands, width, config.default_kernel_size)
    yield from _pooling(f"{name}.1", width, config.default_kernel_size)
    for layer, kernel in enumerate(config.downsample_kernel_sizes, 2):
        yield from _units(f"{name}.{layer}", width, config.res_kernel_size)
        yield from _normed_conv(f"{name}.{layer}.down_conv.layer", width, 2 * width, kernel)
        yield f"{name}.{layer}.down_conv.activation.weight", (1,)
        width *= 2
    yield from _normed_conv(
        f"{name}.{layer + 1}", width, config.latent_hidden_dim, config.default_kernel_size
    )


def _decoder(name: str, config: CodecConfig) -> _Rows:
    width, layer = config.init_channel << len(config.upsample_factors), 0
    yield from _normed_conv(f"{name}.0", config.latent_hidden_dim, width, config.delay_kernel_size)
    for layer, kernel in enumerate(config.upsample_kernel_sizes, 1):
        up = f"{name}.{layer}.up_conv.layer"
        yield f"{up}.bias", (width // 2,)
        yield from _weight_norm(up, (width, width // 2, kernel))  # transposed: inputs first
        width //= 2
        yield from _units(f"{name}.{layer}", width, config.res_kernel_size)
    yield from _pooling(f"{name}.{layer + 1}", width, config.default_kernel_size)
    yield from _normed_conv(f"{name}.{layer + 2}", width, config.num_bands, config.default_kernel_size)


def _units(name: str, width: int, kernel: int) -> _Rows:
    for unit in (f"{name}.convs.{n}" for n in range(_UNITS)):
        yield from _normed_conv(f"{unit}.conv1", width, width, kernel)
        yield from _normed_conv(f"{unit}.conv2", width, width, 1)
        yield f"{unit}.activation1.weight", (1,)
        yield f"{unit}.activation2.weight", (1,)


def _pooling(name: str, width: int, kernel: int) -> _Rows:
    yield f"{name}.conv.weight", (width, width, kernel)
    yield f"{name}.conv.bias", (width,)
    yield f"{name}.activation.weight", (1,)


def _projection(name: str, inputs: int, outputs: int) -> _Rows:
    yield f"{name}.ffn_1.weight", (outputs, inputs, 3)
    yield f"{name}.ffn_1.bias", (outputs,)
    yield from _linear(f"{name}.ffn_2", outputs, outputs)


def _linear(name: str, inputs: int, outputs: int) -> _Rows:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _normed_conv(name: str, inputs: int, outputs: int, kernel: int) -> _Rows:
    yield f"{name}.bias", (outputs,)
    yield from _weight_norm(name, (outputs, inputs, kernel))


def _weight_norm(name: str, shape: Shape) -> _Rows:
    yield f"{name}.parametrizations.weight.original0", (shape[0], 1, 1)
    yield f"{name}.parametrizations.weight.original1", shape
