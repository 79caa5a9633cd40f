"""Augmentation of uint8 batches on their device, each sample with its own parameters.

One family a file: ``geometry``, ``color``, ``tone``, ``erasing``, ``mixing``, ``policies``. Each has two layers:
operations, pure functions of (images, parameters) with one parameter per sample, and the random transforms, small
frozen dataclasses that look their parameters up in counter-based randomness and so are functions of (images, seed,
epoch, ids). What is done to a sample depends on nothing else: not on the batch, its place in it, or the rank.

The names and the meaning of every parameter are torchvision's (``torchvision.transforms.v2``), and so are the pixels
(on uint8 images; nearest interpolation); the tests hold each operation against it.

Layout: uint8 [n, c, h, w]. Planar, because what mixes colours or looks at a channel as a whole reads planes (measured
on a CPU: 1.3 to 3.5 times faster than on interleaved [n, h, w, c], only sharpness a little slower) and because it is
what the network gets in the end; uint8, because it is a quarter of the memory traffic and rounds after each operation
as torchvision does. ``images.permute(0, 3, 1, 2).contiguous()`` gets there from [n, h, w, c], once for all transforms.

Bits: the per-pixel arithmetic is made of single IEEE operations (never a fused multiply-add, a matrix product or a
sum that rounds), so that neither the batch nor the device changes a pixel; trigonometry is done on [n] numbers in
float64 and rounded to float32.
"""
