"""BERT with a small head for each task (sentence pairs, STS-B)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mtlopt._checks import check_choice, check_range
from mtlopt.models._dense import dense_dot_general
from mtlopt.models.mlp import Heads, make_heads

# Layers, hidden size, attention heads.
_SIZES = {"base": (12, 768, 12), "small": (4, 512, 8), "tiny": (2, 128, 2)}
_INIT = nnx.initializers.truncated_normal(0.02)
_EPSILON = 1e-12


class BertLayer(nnx.Module):
    """Self-attention, then two dense layers.

    Self-attention and the pair of dense layers each have a shortcut and a layer norm.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, dropout: float, *, rngs: nnx.Rngs
    ):
        self.attention = nnx.MultiHeadAttention(
            num_heads,
            hidden_size,
            dropout_rate=dropout,
            broadcast_dropout=False,
            kernel_init=_INIT,
            decode=False,
            keep_rngs=False,
            rngs=rngs,
        )
        self.attention_norm = nnx.LayerNorm(hidden_size, epsilon=_EPSILON, rngs=rngs)
        self.dense1 = nnx.Linear(
            hidden_size,
            4 * hidden_size,
            kernel_init=_INIT,
            # The next layer does not use it: a copy there would compute the exact GELU
            # again.
            dot_general=dense_dot_general,
            rngs=rngs,
        )
        self.dense2 = nnx.Linear(
            4 * hidden_size, hidden_size, kernel_init=_INIT, rngs=rngs
        )
        self.dense_norm = nnx.LayerNorm(hidden_size, epsilon=_EPSILON, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self, x: jax.Array, mask: jax.Array | None, rngs: nnx.Rngs | None
    ) -> jax.Array:
        """Maps [batch, length, hidden_size] to the same shape."""
        plain = rngs is None
        out = self.attention(x, mask=mask, deterministic=plain, rngs=rngs)
        x = self.attention_norm(x + self.dropout(out, deterministic=plain, rngs=rngs))
        out = self.dense2(jax.nn.gelu(self.dense1(x), approximate=False))
        return self.dense_norm(x + self.dropout(out, deterministic=plain, rngs=rngs))


class BertEncoder(nnx.Module):
    """The shared encoder of `Bert`."""

    def __init__(
        self,
        num_layers: int,
        hidden_size: int,
        num_heads: int,
        *,
        vocabulary_size: int,
        max_length: int,
        pooling: str,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        def embedding(size: int) -> nnx.Embed:
            return nnx.Embed(size, hidden_size, embedding_init=_INIT, rngs=rngs)

        self.tokens = embedding(vocabulary_size)
        self.positions = embedding(max_length)
        self.segments = embedding(2)
        self.norm = nnx.LayerNorm(hidden_size, epsilon=_EPSILON, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.num_layers = num_layers
        for i in range(num_layers):
            layer = BertLayer(hidden_size, num_heads, dropout, rngs=rngs)
            setattr(self, f"layer{i + 1}", layer)
        self.pooler = (
            nnx.Linear(hidden_size, hidden_size, kernel_init=_INIT, rngs=rngs)
            if pooling == "cls"
            else None
        )
        self.max_length = max_length

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None,
        mask: jax.Array | None,
        key: jax.Array | None,
    ) -> jax.Array:
        """Maps [batch, length] to [batch, hidden_size]."""
        _check_tokens(tokens, segments, mask, self.max_length)
        segments = jnp.zeros_like(tokens) if segments is None else segments
        rngs = None if key is None else nnx.Rngs(dropout=key)
        x = _look_up(self.tokens, tokens) + _look_up(self.segments, segments)
        x = x + _look_up(self.positions, jnp.arange(tokens.shape[1]))
        x = self.dropout(self.norm(x), deterministic=rngs is None, rngs=rngs)

        keep = None if mask is None else mask.astype(bool)
        readable = None if keep is None else keep[:, None, None, :]
        for i in range(1, self.num_layers + 1):
            x = getattr(self, f"layer{i}")(x, readable, rngs)

        if self.pooler is not None:
            return jnp.tanh(self.pooler(x[:, 0]))
        return jnp.mean(x, axis=1, where=None if keep is None else keep[:, :, None])


class Bert(nnx.Module):
    """BERT with a dense head for each task; `bert` builds the published sizes.

    The network has embeddings of tokens, positions and segments, followed by layers.
    Each layer consists of self-attention and two dense layers of `4 * hidden_size` and
    `hidden_size`. Self-attention and the pair of dense layers each have a shortcut,
    with a layer norm after it. Between the two dense layers is an exact GELU. As
    published, kernels and embeddings start from a normal distribution of standard
    deviation 0.02, truncated at two standard deviations. Biases start from zero, and
    layer norms have epsilon 1e-12.

    The latent is one vector for the whole sequence, computed by `pooling`:

    * `"cls"`: the pooler, a dense layer with tanh, reads the vector of the first token,
      [CLS], as in the published model for classification.
    * `"mean"`: the latent is the mean of the vectors of all tokens that `mask` keeps.
      There is no pooler.

    Dropout is on if `encode` gets a key, and off otherwise. The network has no state
    except its parameters.

    Args:
        heads: For each task, the sizes of its layers on the latent, with ReLU between
            them; the last size is its number of outputs. The default is three heads of
            two layers, `(hidden_size, 1)`, for the three copies of STS-B in the second
            paper below. The paper does not print the hidden size of the heads.
        num_layers: Number of layers.
        hidden_size: Size of each token's vector, a multiple of `num_heads`.
        num_heads: Number of attention heads.
        vocabulary_size: Number of tokens.
        max_length: Number of positions.
        pooling: `"cls"` or `"mean"`.
        dropout: Rate of dropout, after embeddings and layers and on attention weights.
        rngs: Source of the initial parameters.

    Raises:
        ValueError: If an argument has a wrong value.

    Examples:
        >>> def run(tokens):
        ...     return bert("tiny", {"similar": (128, 1)}, rngs=nnx.Rngs(0))(tokens)
        >>> nnx.eval_shape(run, jnp.ones([5, 8], int))
        {'similar': ShapeDtypeStruct(shape=(5, 1), dtype=float32)}

    References:
        Devlin, Chang, Lee, Toutanova, "BERT: Pre-training of Deep Bidirectional
        Transformers for Language Understanding", NAACL 2019,
        https://arxiv.org/abs/1810.04805. With three heads of two layers:
        Filatov, Merkulov, "Fast Line Search for Multi-Task Learning", 2021,
        https://arxiv.org/abs/2110.00874.
    """

    def __init__(
        self,
        heads: Heads | None = None,
        *,
        num_layers: int = 12,
        hidden_size: int = 768,
        num_heads: int = 12,
        vocabulary_size: int = 30522,
        max_length: int = 512,
        pooling: str = "cls",
        dropout: float = 0.1,
        rngs: nnx.Rngs,
    ):
        check_choice("pooling", pooling, ("cls", "mean"))
        check_range("dropout", dropout, below=1)
        if hidden_size % num_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_heads`, {num_heads}, got "
                f"{hidden_size}."
            )
        if heads is None:
            heads = {f"task{i}": (hidden_size, 1) for i in (1, 2, 3)}
        self.encoder = BertEncoder(
            num_layers,
            hidden_size,
            num_heads,
            vocabulary_size=vocabulary_size,
            max_length=max_length,
            pooling=pooling,
            dropout=dropout,
            rngs=rngs,
        )
        self.heads = make_heads(hidden_size, heads, kernel_init=_INIT, rngs=rngs)

    def encode(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Maps tokens [batch, length] to the latent, [batch, hidden_size].

        Args:
            tokens: Indices in the vocabulary, [CLS] first.
            segments: Which sentence of the pair, 0 or 1, each token belongs to, [batch,
                length]. None means 0 for every token.
            mask: Which tokens are not padding, [batch, length]. None means all of them.
            key: PRNG key of dropout. None means no dropout.

        Returns:
            The latent representation, [batch, hidden_size].
        """
        return self.encoder(tokens, segments, mask, key)

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Maps the arguments of `encode` to the outputs of all heads, by task."""
        z = self.encode(tokens, segments, mask, key)
        return {task: head(z) for task, head in self.heads.items()}


def bert(
    size: str, heads: Heads | None = None, *, rngs: nnx.Rngs, **settings: Any
) -> Bert:
    """Builds a `Bert` of a published size.

    Args:
        size: `"base"` (12 layers of size 768; 109,482,240 parameters without heads),
            `"small"` (4 layers of size 512; 28,763,648 parameters) or `"tiny"` (2
            layers of size 128; 4,385,920 parameters).
        heads: As in `Bert`.
        rngs: Source of the initial parameters.
        **settings: Other arguments of `Bert`.

    Returns:
        The network.

    Raises:
        ValueError: If `size` is not one of the three names.

    Examples:
        >>> model = nnx.eval_shape(lambda: bert("base", rngs=nnx.Rngs(0)))
        >>> leaves = jax.tree.leaves(nnx.state(model.encoder, nnx.Param))
        >>> sum(leaf.size for leaf in leaves)  # nothing was allocated
        109482240

    References:
        Turc, Chang, Lee, Toutanova, "Well-Read Students Learn Better: On the Importance
        of Pre-training Compact Models", 2019, https://arxiv.org/abs/1908.08962, for the
        small sizes.
    """
    check_choice("size", size, tuple(_SIZES))
    num_layers, hidden_size, num_heads = _SIZES[size]
    return Bert(
        heads,
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=num_heads,
        rngs=rngs,
        **settings,
    )


def _look_up(table: nnx.Embed, indices: jax.Array) -> jax.Array:
    # A call of the table would widen half precision to the dtype in which the table
    # was made.
    return jnp.take(table.embedding[...], indices, axis=0)


def _check_tokens(
    tokens: jax.Array,
    segments: jax.Array | None,
    mask: jax.Array | None,
    max_length: int,
) -> None:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            "`tokens` must be an integer array of shape [batch, length], got "
            f"{tokens.dtype} of shape {tokens.shape}."
        )
    if tokens.shape[1] > max_length:
        raise ValueError(
            f"`tokens` must have at most {max_length} positions, got {tokens.shape[1]}."
        )
    for name, value in (("segments", segments), ("mask", mask)):
        if value is not None and value.shape != tokens.shape:
            raise ValueError(
                f"`{name}` must have the shape of `tokens`, {tokens.shape}, got shape "
                f"{value.shape}."
            )
