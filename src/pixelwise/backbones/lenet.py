"""LeNet-5: the first convolutional network in wide use, for digits of 32 x 32 pixels.

Paper: LeCun, Bottou, Bengio and Haffner 1998, "Gradient-Based Learning Applied to Document Recognition",
https://doi.org/10.1109/5.726791, section II.B.

Our deviations:

- max pooling instead of means with a trainable factor and bias, and ReLU instead of a scaled tanh;
- the second convolution sees all six maps (the paper's table I connects only some of them);
- a dense layer gives the logits, instead of distances to drawn digits;
- any number of channels.

With one channel and ten classes it has 61,706 parameters.
"""

from pixelwise.backbones.chain import Chain, Conv, Pool

LENET = Chain(
    name="lenet",
    layers=(Conv(6, kernel=5), Pool(), Conv(16, kernel=5), Pool(), Conv(120, kernel=5)),
    side=32,
    dense=(84,),
    dropout="no",
)
