"""Watermark of the images of a bundle."""

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxspec.checkpoint import checkpoint_of
from jaxspec.config.residual import ResidualTokenizerConfig
from jaxspec.core.logits import apply_cfg, process_logits
from jaxspec.core.precision import full_precision
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import Bundle, load_tokenizer, token_by_token
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.crops import best_detection, tokens_of_crop
from jaxspec.pipeline.encoding import encode_images
from jaxspec.pipeline.orders import in_order_of
from jaxspec.pipeline.prompts import Prompts
from jaxspec.watermark import (
    Detection,
    Key,
    codebook_digest,
    detect,
    green_codes,
    mark,
)

# Nats by which a green code may be less likely than the token that it replaces.
THRESHOLD = 4.0
_BATCH = 8


@dataclass(frozen=True)
class Watermark:
    """A key, for the codebook of one tokenizer.

    Attributes:
      mates: int32 [K], see `pair_codes`.
      green: bool [K], see `green_codes`.
      threshold: nats, see `mark`.
    """

    mates: np.ndarray
    green: np.ndarray
    threshold: float = THRESHOLD

    @property
    def digest(self) -> str:
        """Digest of everything that a mark depends on; the key does not follow."""
        parts = self.mates.tobytes(), self.green.tobytes(), repr(self.threshold)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @classmethod
    def of(cls, bundle: Bundle, key: Key, threshold: float = THRESHOLD) -> "Watermark":
        """Watermark of a bundle's tokens.

        Args:
          bundle: models that generate token by token.
          key: secret key with the pairs of the bundle's codebook, see `Key.paired`.
          threshold: nats, see `mark`.

        Raises:
          ConfigError: the model does not generate token by token, or the key has no
            pairs for its codebook, or another number.
        """
        codebook = codebook_of(bundle)
        digest = codebook_digest(codebook)
        if digest not in key.pairs:
            raise ConfigError(
                f"this key has marked no image of bundle '{bundle.name}': it has no "
                "pairs of its codes; see Key.paired"
            )
        mates = key.pairs[digest]
        if len(mates) != len(codebook):
            raise ConfigError(
                f"this key pairs {len(mates)} codes, and bundle '{bundle.name}' has "
                f"{len(codebook)}: its file was changed"
            )
        return cls(mates, green_codes(key, mates), threshold)

    def mark(
        self,
        bundle: Bundle,
        prompts: Prompts,
        config: GenerationConfig,
        tokens: np.ndarray,
    ) -> np.ndarray:
        """Tokens of images in which red codes are swapped for green ones.

        One pass over the complete images computes the probabilities that tokens had
        when they were sampled, whichever way they were drafted and verified.

        Args:
          bundle: models that the tokens were sampled from, see `bundle_for`.
          prompts: prompts of the images. Given tokens are not swapped.
          config: settings of the generation.
          tokens: int32 [B, T], given ones included.
        """
        if len(prompts) != len(tokens):
            raise ConfigError(f"{len(prompts)} prompts do not fit {len(tokens)} images")
        given = 0 if prompts.prefix is None else prompts.prefix.shape[1]
        prompts = replace(prompts, prefix=None)
        found = []
        size = _BATCH  # the same for any number of images: one program
        padded = np.resize(np.arange(len(tokens)), (-(-len(tokens) // size), size))
        model = Transformer(bundle.prior.config)
        for part in padded:
            found.append(
                _log_probs(
                    model,
                    config.cfg_scale != 1.0,
                    bundle.prior.params,
                    prompts.take(part),
                    jnp.asarray(tokens[part]),
                    jnp.asarray(self.mates[tokens[part]]),
                    config.sampling(size),
                )
            )
        log_p, mate_log_p = (
            np.concatenate([np.asarray(x) for x in side])[: len(tokens)]
            for side in zip(*found, strict=True)
        )
        marked = mark(
            tokens,
            self.mates,
            self.green,
            log_p=log_p,
            mate_log_p=mate_log_p,
            threshold=self.threshold,
        )
        return np.concatenate([tokens[:, :given], marked[:, given:]], axis=1)

    def detect(self, tokens: np.ndarray) -> Detection:
        """Tests tokens, such as those of `encode_images`, for this watermark."""
        return detect(tokens, self.mates, self.green)

    def detect_crop(
        self, bundle: Bundle, image: Image.Image | np.ndarray | Path | str
    ) -> Detection:
        """Tests an image that may be a part of a marked one, which was not resized.

        It is tested as a whole and with its first pixel at each place in a token
        (IndexMark, arXiv 2505.14673); the probability of a false alarm is that of any
        of these tests.

        Args:
          bundle: models; the tokenizer of a grid is used.
          image: image as for `encode_images`.

        Raises:
          ConfigError: the tokens are no grid.
          DataError: the image cannot be read, or is larger than those of the model.
        """
        rows = [*tokens_of_crop(bundle, image), *encode_images(bundle, [image])]
        return best_detection([self.detect(row) for row in rows])


def codebook_of(bundle: Bundle) -> np.ndarray:
    """Codebook of a bundle, float32 [K, C].

    Raises:
      ConfigError: the model does not generate token by token, or has several tokens a
        cell, which a pair of similar codes might exchange.
    """
    tokenizer = token_by_token(bundle).tokenizer
    if isinstance(tokenizer.config, ResidualTokenizerConfig):
        raise ConfigError(
            f"bundle '{bundle.name}' has several tokens a cell; a watermark needs one"
        )
    return np.asarray(tokenizer.params["codebook"])


def with_encoder(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle, but images are encoded by another tokenizer with the same codes.

    It may have been trained in another order of the tokens.

    Args:
      bundle: models that generate token by token.
      folder: a tokenizer that was trained with `encoder_alone`, its bundle or the
        working folder of its training.

    Raises:
      CheckpointError: the folder holds no tokenizer.
      ConfigError: it has other codes or sizes.
    """
    found = load_tokenizer(checkpoint_of(folder, "tokenizer"))
    own = codebook_of(bundle)
    found = in_order_of(found, bundle.prior.config)
    if found.config != bundle.tokenizer.config:
        raise ConfigError(
            f"'{folder}' has another configuration than the tokenizer of bundle "
            f"'{bundle.name}'"
        )
    if not np.array_equal(found.params["codebook"], own):
        raise ConfigError(f"'{folder}' has other codes than bundle '{bundle.name}'")
    return replace(bundle, image_tokenizer=found)


@partial(jax.jit, static_argnums=(0, 1))
@full_precision
def _log_probs(model, guided, params, prompts, tokens, mates, sampling):
    """Log-probabilities [B, T] of tokens and of the other codes of their pairs.

    Without filters, which would leave out most of the other codes.
    """
    batch = len(tokens)
    branches = [
        model.score(params, prompts, tokens[:, :-1], null=jnp.full(batch, null))[0]
        for null in ((False, True) if guided else (False,))
    ]
    logits = jnp.concatenate(branches)[:, max(model.config.prefix_length - 1, 0) :]
    if guided:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        logits = apply_cfg(logits, sampling, positions)
    log_p = jax.nn.log_softmax(process_logits(logits, sampling, ("temperature",)))
    return tuple(
        jnp.take_along_axis(log_p, jnp.maximum(codes, 0)[..., None], axis=-1)[..., 0]
        for codes in (tokens, mates)
    )
