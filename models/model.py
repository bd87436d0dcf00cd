"""Base class of every model that is trained: what the training loop and the optimizer ask of it."""

from typing import Any

from torch import Tensor, nn


class Model(nn.Module):
    """A model with hooks of training that do nothing; a subclass overrides those that it needs.

    Attributes:
        scored: Submodule whose weights are scored and saved as `model` in checkpoints, such as an
            average of the weights. None means the model itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scored: nn.Module | None = None

    @property
    def pretrained_module(self) -> nn.Module:
        """Return the module that the weights of --pretrained are loaded into."""
        return self

    @property
    def whole_encoder(self) -> nn.Module:
        """Return the complete encoder, whose features a probe reads during pre-training."""
        return self

    def encoder_loaded(self) -> None:
        """Start from the first weights of the encoder: those of --pretrained, or random ones."""

    def begin_step(self) -> None:
        """Prepare an optimizer step, before its first batch."""

    def after_step(self, state: Any) -> None:
        """Follow an optimizer step. `state` is the `TrainState`."""

    def logged_values(self) -> dict[str, Tensor]:
        """Return scalars of the last batch that are logged beside its loss, by name.

        A batch may lack a scalar, which then counts the other batches; but all ranks must agree.
        """
        return {}

    def no_weight_decay(self) -> set[str]:
        """Return the parameters without weight decay, in addition to vectors and biases."""
        return set()

    def no_weight_decay_keywords(self) -> set[str]:
        """Return parts of dotted names. Parameters whose name has one of them do not decay."""
        return set()
