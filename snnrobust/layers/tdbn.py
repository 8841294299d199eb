"""Threshold-dependent batch normalisation."""

from __future__ import annotations

from torch import Tensor, nn

from snnrobust import checks
from snnrobust.layers.batch_norm import batch_norm, check_features

__all__ = ["TDBN"]


class TDBN(nn.modules.batchnorm._BatchNorm):
    r"""Threshold-dependent batch normalisation (tdBN): the scale of the input is that of the threshold.

    .. math:: y = \gamma \, \alpha \theta \, (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta

    A plain layer on ``[T * B, C, *]``, with up to three further axes: in a :class:`~snnrobust.layers.Sequential` its
    statistics are those of all time steps, samples and places. Eval mode uses running means, as ``nn.BatchNorm2d`` does. A
    ``step`` while training normalises over that step alone, like every layer into which time is folded.

    Args:
        features: Channels ``C``.
        threshold: :math:`\theta` > 0 of the neurons that follow.
        alpha: :math:`\alpha` > 0; :math:`1 / \sqrt{n}` where ``n`` branches are added, so 0.7071 in a residual block.
        eps: Added to the variance.
        momentum: Weight of the newest batch in the running statistics.

    Raises:
        ValueError: other than ``features`` channels.

    Source: Zheng et al. 2021, "Going deeper with directly-trained larger spiking neural networks".
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    eps: float
    momentum: float

    def __init__(
        self, features: int, threshold: float = 1.0, alpha: float = 1.0, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__(
            checks.count("features", features),
            checks.number("eps", eps, 0.0, exclusive_low=True),
            checks.number("momentum", momentum, 0.0, 1.0),
        )
        self.features = features
        self.threshold = checks.number("threshold", threshold, 0.0, exclusive_low=True)
        self.alpha = checks.number("alpha", alpha, 0.0, exclusive_low=True)

    def forward(self, input: Tensor) -> Tensor:
        check_features("TDBN", input, self.features)
        if self.training:
            self.num_batches_tracked.add_(1)
        weight = self.weight * (self.alpha * self.threshold)
        mean, var = self.running_mean, self.running_var
        return batch_norm(input, mean, var, weight, self.bias, self.training, self.momentum, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.features}, threshold={self.threshold:g}, alpha={self.alpha:g}, "
            f"eps={self.eps}, momentum={self.momentum}"
        )
