"""cifar-dist: distributed training of small-image classifiers."""

__version__ = "0.1.0"
