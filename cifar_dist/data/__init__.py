"""Datasets: read a source, pack or index it into shards, and yield the batches of an epoch. Independent of training."""
