"""What a machine is, as far as the plan and the engines ask."""

from dataclasses import dataclass

import psutil
import torch

from pixelwise.backbones import installed_encoders
from pixelwise.core.errors import SettingError


@dataclass(frozen=True)
class Machine:
    """What the plan may know of a machine."""

    cores: int
    memory: int  # bytes, of the CPU
    device: str  # cpu, cuda or mps
    fast_bf16: bool  # the device computes in bfloat16 faster than in float32
    encoders: tuple[str, ...] = ()  # backbones whose published weights are installed

    @classmethod
    def here(cls, device: str = "auto") -> "Machine":
        """This machine.

        Raises:
            SettingError: it lacks the named device.
        """
        device = pick_device(device)
        if device == "cpu":
            abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
            fast_bf16 = bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
        else:
            fast_bf16 = device == "cuda" and torch.cuda.is_bf16_supported()
        return cls(torch.get_num_threads(), psutil.virtual_memory().total, device, fast_bf16, installed_encoders())


def pick_device(name: str) -> str:
    """The device to use: the named one, or for "auto" the fastest.

    Raises:
        SettingError: this machine lacks the named device.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if there[device])
    if not there.get(name):
        present = ", ".join(device for device, is_there in there.items() if is_there)
        raise SettingError(f"device {name}: is not there; this machine has: {present}.")
    return name
