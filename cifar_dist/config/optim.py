"""Settings of the optimizers: one dataclass for each, which builds the torch optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cifar_dist.config.choice import Choice
from cifar_dist.config.section import require, require_at_least

if TYPE_CHECKING:
    from torch.optim import Optimizer

    Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class OptimConfig(Choice):
    """The optimizer."""

    key: ClassVar[str] = "optim"
    variants: ClassVar[dict[str, type[OptimConfig]]] = {}
    defined_by_variants: ClassVar[tuple[str, ...]] = ("build",)

    name: str = "sgd"
    """The optimizer, or ``path/to/file.py:Attribute`` for one from outside the package."""
    lr: float = 0.1
    """Learning rate at the schedule's peak, for the global batch as it is (no scaling rule is applied)."""
    weight_decay: float = 5e-4
    """Weight decay: L2 in the gradient for sgd and adam, decoupled for adamw. For muon, decoupled in the hidden layers,
    none there with ``normalize``, and that of ``rest`` in the others."""
    decay_norms: bool = False
    """Also decay biases and the weights of norm layers."""
    clip_norm: float = 0.0
    """Clip the global gradient norm at this value; 0 disables clipping."""
    sam_rho: float = 0.0
    """Radius of sharpness-aware minimisation, with any optimizer: two passes per step; 0 disables it."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"lr {self.lr} must be positive")
        require_at_least(self, weight_decay=0, clip_norm=0, sam_rho=0)

    def build(self, groups: Groups) -> Optimizer:
        """Build the optimizer over ``groups``, in the form that torch's optimizers take: ``params``, ``weight_decay``.

        Its state must be tensors by parameter, because checkpoints store nothing else. For muon, this is the optimizer
        of the parameters outside the hidden layers.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class StagedOptimConfig(OptimConfig):
    """An optimizer that allows each stage of the network its own learning rate."""

    backbone_lr: float = 1.0
    """Learning rate of all layers except the last, as a multiple of ``lr``."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each stage of the backbone to the preceding one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.backbone_lr > 0, f"backbone_lr {self.backbone_lr} must be positive; to freeze it, use model.freeze"
        )
        require(0 < self.layer_decay <= 1, f"layer_decay {self.layer_decay} must be above 0 and at most 1")


@dataclass(frozen=True)
class SGDConfig(StagedOptimConfig):
    """Stochastic gradient descent with momentum."""

    name: str = "sgd"
    momentum: float = 0.9
    """Momentum."""
    nesterov: bool = True
    """Nesterov momentum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_momentum("momentum", self.momentum, nesterov=self.nesterov)

    def build(self, groups: Groups) -> Optimizer:
        from torch.optim import SGD

        return SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class MomentsOptimConfig(StagedOptimConfig):
    """An optimizer that divides the mean of the gradients by the root of their mean square."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: float = 1e-8
    """Term added to the denominator."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_moments(self.betas, self.eps)


@dataclass(frozen=True)
class AdamConfig(MomentsOptimConfig):
    """Adam (Kingma and Ba, arXiv:1412.6980); weight decay is part of the gradient."""

    name: str = "adam"

    def build(self, groups: Groups) -> Optimizer:
        from torch.optim import Adam

        return Adam(groups, lr=self.lr, betas=self.betas, eps=self.eps)


@dataclass(frozen=True)
class AdamWConfig(MomentsOptimConfig):
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101): Adam with decoupled weight decay."""

    name: str = "adamw"

    def build(self, groups: Groups) -> Optimizer:
        from torch.optim import AdamW

        return AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)


@dataclass(frozen=True)
class MuonConfig(OptimConfig):
    """Muon for the hidden convolutions and linear layers; ``rest`` trains all else.

    That is the first layer, the head, norms, biases, and weights outside such layers: class tokens, position embeddings
    and, as in torchvision's ViTs, ``in_proj_weight`` of nn.MultiheadAttention.
    """

    picked_by: ClassVar[str] = "rest"
    variants: ClassVar[dict[str, type[OptimConfig]]] = {}

    name: str = "muon"
    momentum: float = 0.9
    """Momentum of the hidden layers."""
    nesterov: bool = True
    """Nesterov momentum, also for ``rest = "sgd"``."""
    normalize: bool = False
    """Scale each matrix to the norm sqrt(outputs) before each step, without weight decay: for weights whose scale a
    norm layer cancels."""
    iterations: int = 5
    """Newton-Schulz iterations."""
    rest: str = "sgd"
    """Optimizer of the parameters outside the hidden layers."""
    rest_lr: float = 1.0
    """Learning rate of ``rest``, as a multiple of ``lr``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, f"momentum {self.momentum} must be in [0, 1)")
        require(1 <= self.iterations <= 20, f"iterations {self.iterations} must be between 1 and 20")
        require(self.rest_lr > 0, f"rest_lr {self.rest_lr} must be positive")


@dataclass(frozen=True)
class MuonSGDConfig(MuonConfig):
    """Muon for the hidden layers, SGD for the rest."""

    rest: str = "sgd"
    rest_momentum: float = 0.9
    """Momentum of ``rest``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_momentum("rest_momentum", self.rest_momentum, nesterov=self.nesterov)

    def build(self, groups: Groups) -> Optimizer:
        from torch.optim import SGD

        return SGD(groups, lr=self.lr, momentum=self.rest_momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class MuonAdamWConfig(MuonConfig):
    """Muon for the hidden layers, AdamW for the rest."""

    rest: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments of ``rest``."""
    eps: float = 1e-8
    """Term added to the denominator of ``rest``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_moments(self.betas, self.eps)

    def build(self, groups: Groups) -> Optimizer:
        from torch.optim import AdamW

        return AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)


MuonConfig.variants.update(sgd=MuonSGDConfig, adamw=MuonAdamWConfig)
OptimConfig.variants.update(sgd=SGDConfig, adam=AdamConfig, adamw=AdamWConfig, muon=MuonConfig)


def _check_momentum(name: str, momentum: float, *, nesterov: bool) -> None:
    require(0 <= momentum < 1, f"{name} {momentum} must be in [0, 1)")
    require(not nesterov or momentum > 0, f"nesterov needs a momentum; set nesterov = false or {name} = 0.9")


def _check_moments(betas: tuple[float, float], eps: float) -> None:
    require(all(0 <= beta < 1 for beta in betas), f"betas {list(betas)} must be in [0, 1)")
    require(eps >= 0, f"eps {eps} must not be negative")
