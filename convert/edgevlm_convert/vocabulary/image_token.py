"""The id that config.json gives the token which stands for an image, held against the tokenizer.

transformers puts visual tokens where this id stands; the runtime goes by the token's text in the
chat template. Where the two name different tokens, the tokenizer is not the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgevlm.errors import ConversionError
from edgevlm_convert.config import MAX_VOCABULARY, Section
from edgevlm_convert.json_file import quoted

# The second is what transformers 4 calls it in some classes.
_KEYS = ("image_token_id", "image_token_index")
_HINT = "config.json or the tokenizer is another checkpoint's: download both again"


def check_image_token(
    config: Section, tokens: Sequence[str], *, text: str, named: Mapping[str, str]
) -> None:
    """Check that config.json and the vocabulary mean the same token by an image.

    Args:
        config: config.json; without such a key nothing is checked.
        tokens: the vocabulary by id, with its padding.
        text: of the family's image token.
        named: texts of other tokens that config.json has an id of, by its key.

    Raises:
        CheckpointError: the id is no number of a token.
        ConversionError: the id is outside of the vocabulary, or another token's.
    """
    for key, wanted in {**dict.fromkeys(_KEYS, text), **named}.items():
        if config.raw(key) is None:
            continue
        number = config.integer(key, low=0, high=MAX_VOCABULARY)
        if number >= len(tokens):
            raise ConversionError(
                f"config.json: `{key}` is {number}, outside of the vocabulary of"
                f" {len(tokens)} tokens",
                hint=_HINT,
            )
        if tokens[number] != wanted:
            what = "the image token " if key in _KEYS else ""
            raise ConversionError(
                f"config.json: `{key}` is {number}, and token {number} is"
                f" {quoted(tokens[number])}, not {what}{quoted(wanted)}",
                hint=_HINT,
            )
