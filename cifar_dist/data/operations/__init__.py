"""Operations of the transforms on uint8 batches on their device: pure functions of (images, one parameter per sample).

One family per file. Names, parameters and results are those of torchvision (``torchvision.transforms.v2``, on uint8
images with nearest interpolation); the tests compare each operation with it.

Layout: uint8 [n, c, h, w]. Planar, because operations that mix colours or reduce a channel read planes (measured on a
CPU: 1.3 to 3.5 times faster than on interleaved [n, h, w, c], with only sharpness a little slower), and because it is
the network's input layout; uint8, because it needs a quarter of the memory traffic and rounds after each operation as
torchvision does.

Bits: the per-pixel arithmetic consists of single IEEE operations (never a fused multiply-add, a matrix product or a sum
that rounds), so that neither the batch nor the device changes a pixel; trigonometry is computed on [n] numbers in
float64 and rounded to float32.
"""
