"""The sliding-window classifier that fully convolutional networks replaced, and how to turn it into one of them.

Shapes: N images, C channels, H x W pixels, K classes; a patch has P x P pixels, a classifier a step of S pixels.

Papers: Farabet et al. 2013, "Learning hierarchical features for scene labeling",
https://doi.org/10.1109/TPAMI.2012.231; Ciresan et al. 2012, "Deep neural networks segment neuronal membranes in
electron microscopy images", NIPS: each pixel is classified by the patch around it. Sermanet et al. 2014,
arXiv:1312.6229 (OverFeat), section 3.5, and Long et al. 2015, arXiv:1411.4038, section 3.1, slide a classifier over an
image as a convolution. Giusti et al. 2013, arXiv:1302.1700, do without the steps of its poolings, by fragments of maps
that dilation computes as one map.

Our deviations, all of them in `Patch`:

- one scale, one network: Farabet's classifier sees three scales, and its results are averaged over segments; Ciresan
  averages several networks of two patch sizes;
- all layers but the last are normalised (by batch norm unless set otherwise) and then have no bias; ReLU replaces tanh;
- outside the image a patch sees zeros, the mean colour of a normalised image, where Ciresan mirrors the image;
- it trains on all pixels of a crop at once, like any network here, not on random patches; batch norm counts each value
  of a map once, not once for each patch that contains it.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pixelwise.core.errors import ModelError, SettingError, reason
from pixelwise.geometry.modes import evaluation_mode
from pixelwise.geometry.tracing import Trace
from pixelwise.layers import NORMS, he_start
from pixelwise.models.base import Segmenter, check_at_least_one, check_dropout

KERNELS = (4, 4, 5)  # of the three convolutions, a pooling by 2 after each: 65 -> 62 | 31 -> 28 | 14 -> 10 | 5
PATCH = 65  # pixels on each side: odd, so that its middle is a pixel, and every pooling divides evenly
MAP = 5  # pixels on each side of the map that the dense layers see

PARTS = ("features", "avgpool", "flatten", "classifier")
"""Children that a module other than an `nn.Sequential` may have, in the order in which it applies them."""

POINTWISE = (
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish,
    nn.Sigmoid, nn.Tanh,
)  # fmt: skip
SPATIAL = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.BatchNorm2d, nn.LocalResponseNorm)
ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


class Patch(Segmenter):
    """Classifies each pixel by the 65 x 65 pixels around it: three convolutions with poolings, two dense layers.

    Takes N x in_channels x H x W float images, already normalised; gives N x num_classes x H x W logits. All pixels
    are classified at once: instead of the classifier's steps the kernels are dilated, and its dense layers are
    convolutions. The result equals that of `slide(patch.classifier, ...)` over the image with 32 zeros around it, and
    comes about a hundred times faster. Both must be in eval mode for that, so that batch norm and dropout stand still.

    Args:
        in_channels: C of the image.
        num_classes: K.
        width: filters of each convolution.
        hidden: values of the first dense layer.
        norm: "batch" or "none"; group norm would make a pixel depend on all others.
        dropout: probability of dropping a value of the first dense layer.

    Raises:
        SettingError: a setting makes no sense.
        ModelError: (forward) as in `Segmenter`.

    >>> network = Patch(in_channels=3, num_classes=5, width=4, hidden=8).eval()
    >>> network(torch.zeros(1, 3, 31, 17)).shape, network.classifier(torch.zeros(1, 3, 65, 65)).shape
    (torch.Size([1, 5, 31, 17]), torch.Size([1, 5]))
    """

    small: ClassVar = {"width": 16}
    large: ClassVar = {"width": 32}
    own_encoder: ClassVar = "it has no encoder, only a few layers for a patch. Leave model.backbone out"

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        width: int = 48,
        hidden: int = 200,
        norm: str = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, num_classes, stride=1)
        check_at_least_one(width=width, hidden=hidden)
        check_dropout(dropout)
        _check_norm(norm)
        self.width, self.hidden, self.norm, self.dropout = width, hidden, norm, dropout
        self.layers = _at_every_pixel(convolutionalize(self._plain_classifier(), PATCH))
        self.apply(he_start)

    @property
    def classifier(self) -> nn.Sequential:
        """A classifier of single patches with a copy of this network's weights: N x C x 65 x 65 -> N x K logits."""
        classifier = self._plain_classifier()
        own = self.layers.state_dict().values()
        weights = {
            name: values.reshape(plain.shape).clone()
            for (name, plain), values in zip(classifier.state_dict().items(), own, strict=True)
        }
        classifier.load_state_dict(weights, assign=True)
        return classifier.train(self.training)

    def _plain_classifier(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        channels = self.in_channels
        for kernel in KERNELS:
            convolution = nn.Conv2d(channels, self.width, kernel, bias=self.norm == "none")
            layers += [convolution, NORMS[self.norm](self.width), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            channels = self.width
        dense = nn.Linear(MAP**2 * channels, self.hidden, bias=self.norm == "none")
        norm = nn.BatchNorm1d(self.hidden) if self.norm == "batch" else nn.Identity()
        layers += [nn.Flatten(), dense, norm, nn.ReLU(inplace=True), nn.Dropout(self.dropout)]
        return nn.Sequential(*layers, nn.Linear(self.hidden, self.num_classes))

    @override
    def outputs_on_grid(self, images: Tensor) -> dict[str, Tensor]:
        """The logits of every pixel; zeros surround the image, so that a patch fits around each of its pixels."""
        around = PATCH // 2
        return {"logits": self.layers(F.pad(images, (around, around, around, around)))}

    @override
    def encoder(self) -> list[nn.Module]:
        """The convolutions, without the dense layers."""
        return list(self.layers)[: 4 * len(KERNELS)]


def _check_norm(norm: str) -> None:
    if norm not in ("batch", "none"):
        raise SettingError(
            f'model.norm: must be "batch" or "none", not {norm!r}: statistics of the image would make a pixel '
            f"depend on more than its patch."
        )


def _at_every_pixel(network: nn.Sequential) -> nn.Sequential:
    """Change layers in place to have no steps: after one of 2, the taps of all later layers lie twice as far apart."""
    step = 1
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            layer.dilation = (step, step)
        if isinstance(layer, nn.MaxPool2d):
            layer.stride, layer.dilation, step = 1, step, step * 2
    return network


def slide(classifier: nn.Module, images: Tensor, patch: int, stride: int = 1) -> Tensor:
    """Classify each window of the images on its own, the work that a fully convolutional network saves.

    All windows lie inside the images. One row of windows is a batch.

    Args:
        classifier: takes N x C x patch x patch, gives N x K logits.
        images: N x C x H x W, floating point.
        patch: P, pixels on each side of a window.
        stride: S, pixels from one window to the next.

    Returns:
        N x K x H' x W', where H' = floor((H - P) / S) + 1.

    Raises:
        SettingError: the stride is below 1.
        ModelError: no window fits into the images.

    >>> slide(nn.Flatten(), torch.arange(6.0).view(1, 1, 2, 3), patch=2).shape
    torch.Size([1, 4, 1, 2])
    """
    if stride < 1:
        raise SettingError(f"stride: must be at least 1 pixel, not {stride}.")
    if patch > min(images.shape[-2:]):
        size = f"{images.shape[-2]} x {images.shape[-1]}"
        raise ModelError(f"a window of {patch} x {patch} pixels does not fit into images of {size}: pad the images.")
    count = len(images)
    rows = []
    for row in images.unfold(2, patch, stride).unfold(3, patch, stride).unbind(2):  # N x C x W' x P x P each
        logits = classifier(row.transpose(1, 2).flatten(0, 1)).flatten(1)
        rows.append(logits.unflatten(0, (count, -1)).transpose(1, 2))
    return torch.stack(rows, dim=2)


def convolutionalize(classifier: nn.Module, image_size: int) -> nn.Sequential:
    """Turn a classifier of images into a network that slides it over images of its own size or larger.

    A dense layer that sees C channels of h x w pixels is a convolution with a kernel of h x w on them; each later
    dense layer is a convolution of 1 x 1. The weights are copied. Where no layer pads (and no pooling has `ceil_mode`),
    the result is that of `slide` at the classifier's stride, the product of its layers' strides; it may have one more
    row or column at the end if the steps skip the last pixels of a window, which then needs less room. A layer that
    pads puts zeros around each window, where the convolutional form sees the image instead: the two then agree only on
    images of `image_size`.

    Args:
        classifier: takes N x C x image_size x image_size, gives N x K logits. An `nn.Sequential`, possibly nested; or
            a module with the children `features`, `avgpool`, `flatten` (the last two optional) and `classifier`,
            applied in that order, the layout of torchvision's AlexNet and VGG. Layers: convolutions, poolings, batch
            norm, local response norm, pointwise activations, dropout; then `nn.Flatten` and dense layers. An adaptive
            pooling is dropped if it changes nothing at that size, and becomes a plain one if it leaves one pixel.
        image_size: pixels on each side of the images that the classifier was made for.

    Returns:
        Takes N x C x H x W, gives N x K x H' x W' with H' = 1 for H = image_size; in the classifier's mode.

    Raises:
        ModelError: a layer cannot be converted, or not in its place; or `image_size` is not the classifier's.

    Source: Sermanet et al. 2014, arXiv:1312.6229, section 3.5; Long et al. 2015, arXiv:1411.4038, section 3.1.

    >>> classifier = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 5))
    >>> convolutionalize(classifier, image_size=8)(torch.zeros(1, 1, 12, 20)).shape
    torch.Size([1, 5, 3, 7])
    """
    check_at_least_one(image_size=image_size)
    layers = list(_layers(classifier))
    shape = 1, _channels(layers, image_size), image_size, image_size
    network = _cast_all(layers, torch.empty(shape, device="meta")).train(classifier.training)
    if not isinstance(classifier, nn.Sequential):
        _check_forward(classifier, network, shape)
    return network


def _cast_all(layers: Iterable[tuple[str, nn.Module]], values: Tensor) -> nn.Sequential:
    """Convert the named layers. `values`: empty images, 1 x C x H x W, of the size that the classifier takes."""
    image_size, flat, network = values.shape[-1], False, nn.Sequential()
    for name, layer in layers:
        if isinstance(layer, nn.Flatten):
            flat = True
            continue
        network.append(_cast(name, layer, values, flat))
        values = _size_after(name, network[-1], values)
    if values.shape[-2:] != (1, 1):
        raise ModelError(
            f"the classifier ends with {_size(values)} for images of {image_size} x {image_size}, not with one value "
            f"for each class: end it with nn.Flatten and a dense layer, or give the image_size that it was made for."
        )
    return network


def _layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers in the order in which they are applied, by their full names.

    Raises:
        ModelError: the outermost module has children other than a classifier's.
    """
    if type(module).forward is not nn.Sequential.forward:
        if name:
            yield name, module
            return
        module = _in_order(module)
    for child_name, child in module.named_children():
        yield from _layers(child, f"{name}.{child_name}" if name else child_name)


def _in_order(classifier: nn.Module) -> nn.Sequential:
    """The children of a module in the layout of torchvision's AlexNet and VGG, as one sequence."""
    children = dict(classifier.named_children())
    if not {"features", "classifier"} <= children.keys() <= set(PARTS):
        found = ", ".join(children) or "none"
        raise ModelError(
            f"{type(classifier).__name__}: cannot tell in which order its children are applied: give an "
            f"nn.Sequential, or a module with the children {', '.join(PARTS)}, not {found}."
        )
    ordered = nn.Sequential()
    for part in PARTS:
        if part in children or part == "flatten":
            ordered.add_module(part, children.get(part, nn.Flatten()))
    return ordered


def _channels(layers: Iterable[tuple[str, nn.Module]], image_size: int) -> int:
    """C of the images, derived from the first layer with weights."""
    values = torch.empty(1, 1, image_size, image_size, device="meta")
    for name, layer in layers:
        if isinstance(layer, nn.Conv2d):
            return layer.in_channels
        if isinstance(layer, nn.BatchNorm2d):
            return layer.num_features
        if isinstance(layer, nn.Linear):
            return max(layer.in_features // values.numel(), 1)
        if isinstance(layer, SPATIAL + ADAPTIVE):
            values = _size_after(name, layer, values)
    raise ModelError("the classifier has neither a convolution nor a dense layer: give one that has.")


def _cast(name: str, layer: nn.Module, values: Tensor, flat: bool) -> nn.Module:
    """Convert a layer: to a copy, or to a convolution with its weights. `values`: the 1 x C x h x w that it gets."""
    if isinstance(layer, POINTWISE) or (isinstance(layer, SPATIAL) and not flat):
        return copy.deepcopy(layer)
    if isinstance(layer, ADAPTIVE) and not flat:
        return _plain_pooling(name, layer, values)
    if isinstance(layer, nn.Linear) and flat:
        return _as_convolution(name, layer, values)
    if isinstance(layer, nn.BatchNorm1d) and flat and values.shape[-2:] == (1, 1):
        return _as_batch_norm_of_maps(layer)
    if isinstance(layer, SPATIAL + ADAPTIVE):
        why = "it comes after nn.Flatten, which leaves no map"
    elif isinstance(layer, nn.Linear):
        why = "a dense layer takes the values of a whole map: put nn.Flatten before it"
    elif isinstance(layer, nn.BatchNorm1d):
        why = "put it after the first dense layer, where each value is one pixel"
    else:
        why = "only convolutions, poolings, batch norm, activations, dropout, nn.Flatten and dense layers can be cast"
    raise ModelError(f"{name} ({type(layer).__name__}) has no convolutional form: {why}.")


def _as_convolution(name: str, layer: nn.Linear, values: Tensor) -> nn.Conv2d:
    channels, height, width = values.shape[1:]
    if layer.in_features != values.numel():
        raise ModelError(
            f"{name} takes {layer.in_features} values, but gets {_size(values)} = {values.numel()}: give the "
            f"image_size that the classifier was made for."
        )
    weight = layer.weight.detach().reshape(layer.out_features, channels, height, width)
    convolution = nn.Conv2d(channels, layer.out_features, (height, width), bias=layer.bias is not None).to(weight)
    with torch.no_grad():
        convolution.weight.copy_(weight)
        if convolution.bias is not None:
            convolution.bias.copy_(layer.bias)
    return convolution


def _as_batch_norm_of_maps(layer: nn.BatchNorm1d) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    norm.load_state_dict(layer.state_dict(), assign=True)
    return copy.deepcopy(norm)  # not the tensors of the classifier


def _plain_pooling(name: str, layer: nn.Module, values: Tensor) -> nn.Module:
    """What an adaptive pooling does at this size, with a kernel that does not adapt."""
    height, width = values.shape[-2:]
    after = tuple(copy.deepcopy(layer).to("meta")(values).shape[-2:])
    if after == (height, width):
        return nn.Identity()
    if after == (1, 1):
        plain = nn.AvgPool2d if isinstance(layer, nn.AdaptiveAvgPool2d) else nn.MaxPool2d
        return plain((height, width), stride=1)
    raise ModelError(
        f"{name} ({type(layer).__name__}) has no convolutional form: it pools {height} x {width} to {after[0]} x "
        f"{after[1]} pixels, and would pool other sizes differently; give an image_size at which it changes nothing."
    )


def _size_after(name: str, layer: nn.Module, values: Tensor) -> Tensor:
    """The layer's result without values."""
    try:
        result: Tensor = Trace(stride=1).run(layer, *values.shape[1:])
    except ModelError as error:
        raise ModelError(
            f"{name} ({type(layer).__name__}) cannot take {_size(values)}: {reason(error)}; give the image_size that "
            f"the classifier was made for."
        ) from error
    return result


def _size(values: Tensor) -> str:
    return " x ".join(map(str, values.shape[1:]))


def _check_forward(classifier: nn.Module, network: nn.Sequential, shape: tuple[int, ...]) -> None:
    """Compare the two on one image, since a module's forward may do more than apply its children.

    Raises:
        ModelError: they differ.
    """
    weight = next(network.parameters())
    if weight.is_meta:
        return
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(weight)
    with evaluation_mode(classifier, network), torch.no_grad():
        expected, result = classifier(image).flatten(), network(image).flatten()
    if expected.shape != result.shape or (expected - result).abs().max() > 1e-3 * expected.abs().max():
        raise ModelError(
            f"{type(classifier).__name__}: its forward does more than apply {', '.join(PARTS)} in that order: give "
            f"an nn.Sequential that does all of it."
        )
