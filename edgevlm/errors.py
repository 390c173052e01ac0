"""Every error a user can cause, as one tree.

    EdgeVLMError
    ├── SourceNotFoundError            the path, model or repository named does not exist
    ├── HubError                       the Hub refuses, or sends what it did not list
    │   └── HubUnreachableError        no answer from the Hub
    ├── CheckpointError                a checkpoint that is broken, hostile or incomplete
    │   └── UnsupportedArchitectureError   no family claims its config
    ├── ConversionError                a tensor, token or option that cannot be carried over
    ├── GGUFError                      a GGUF file that is broken, hostile or of the wrong kind
    ├── ManifestError                  an edgevlm.json that does not hold together
    ├── ProfileError                   a quantization profile with an unknown key, type or rule
    ├── QuantizationError              a tensor that the asked type cannot hold
    ├── ModelLoadError                 llama.cpp refused the model, the projector or the context
    ├── EngineError                    the engine's process ended while it was answering
    ├── ContextOverflowError           the prompt is longer than the context
    ├── PromptError                    a chat template or a prompt that cannot be rendered
    ├── ImageError                     an image that cannot be read, or beyond the limits
    ├── ReferenceFileError             a reference file that is missing, broken or of another format
    ├── DriftError                     two sides that cannot be compared
    ├── ReportError                    a drift report that is missing, broken or of another version
    ├── MissingExtraError              torch and transformers are needed and not installed
    ├── OutputExistsError              the output is there already
    └── OutputError                    the output folder cannot be written, or the disk is too small

A message says what is wrong and which value; `hint` says what to do next. The command line prints
both and exits with `exit_code`; anything that is not an EdgeVLMError is a bug and keeps its
traceback.
"""

from __future__ import annotations


class EdgeVLMError(Exception):
    """An error that a user can cause and mend.

    Args:
        message: what is wrong, and which value; no final period.
        hint: what to do next; empty when nothing can be done.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SourceNotFoundError(EdgeVLMError):
    """The path, model or repository that was named does not exist."""


class HubError(EdgeVLMError):
    """The Hub refuses a repository, or sends something else than it listed."""


class HubUnreachableError(HubError):
    """The Hub gives no answer, or none that could be waited for."""


class CheckpointError(EdgeVLMError):
    """A Hugging Face checkpoint that is broken, hostile or incomplete."""


class UnsupportedArchitectureError(CheckpointError):
    """A checkpoint whose config no family claims."""


class ConversionError(EdgeVLMError):
    """A tensor, a token or an option that cannot be carried over to GGUF."""


class GGUFError(EdgeVLMError):
    """A GGUF file that is broken, hostile or of the wrong kind."""


class ManifestError(EdgeVLMError):
    """An edgevlm.json that does not hold together."""


class ProfileError(EdgeVLMError):
    """A quantization profile with an unknown key, type or rule."""


class QuantizationError(EdgeVLMError):
    """A tensor that the asked tensor type cannot hold."""


class ModelLoadError(EdgeVLMError):
    """llama.cpp refused the model, the projector or the context."""


class EngineError(EdgeVLMError):
    """The engine's process ended while it was answering."""


class ContextOverflowError(EdgeVLMError):
    """The prompt is longer than the context."""


class PromptError(EdgeVLMError):
    """A chat template or a prompt that cannot be rendered."""


class ImageError(EdgeVLMError):
    """An image that cannot be read, or that is beyond the limits."""


class ReferenceFileError(EdgeVLMError):
    """A reference file that is missing, broken or of another format."""


class DriftError(EdgeVLMError):
    """Two sides that cannot be compared: no numbers, or of different models."""


class ReportError(EdgeVLMError):
    """A drift report that is missing, broken or of another version."""


class MissingExtraError(EdgeVLMError):
    """An optional dependency is needed and not installed."""


class OutputError(EdgeVLMError):
    """The output folder cannot be written, or the disk is too small."""


class OutputExistsError(OutputError):
    """The output is there already."""
