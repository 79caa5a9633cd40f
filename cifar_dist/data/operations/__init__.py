"""What the transforms do to uint8 batches on their device: pure functions of (images, one parameter per sample).

One family a file. The names and the meaning of every parameter are torchvision's (``torchvision.transforms.v2``), and
so are the pixels (on uint8 images; nearest interpolation); the tests hold each operation against it.

Layout: uint8 [n, c, h, w]. Planar, because what mixes colours or looks at a channel as a whole reads planes (measured
on a CPU: 1.3 to 3.5 times faster than on interleaved [n, h, w, c], only sharpness a little slower) and because it is
what the network gets in the end; uint8, because it is a quarter of the memory traffic and rounds after each operation
as torchvision does.

Bits: the per-pixel arithmetic is made of single IEEE operations (never a fused multiply-add, a matrix product or a
sum that rounds), so that neither the batch nor the device changes a pixel; trigonometry is done on [n] numbers in
float64 and rounded to float32.
"""
