"""What a machine is."""

import psutil
import pytest
import torch

from pixelwise.core.errors import SettingError
from pixelwise.engines.machine import Machine, pick_device


def test_this_machine_is_described() -> None:
    machine = Machine.here("cpu")
    assert machine.device == "cpu"
    assert machine.cores == torch.get_num_threads()
    assert machine.memory == psutil.virtual_memory().total
    assert isinstance(machine.fast_bf16, bool)
    assert Machine.here("auto").device == pick_device("auto")


@pytest.mark.parametrize(
    ("cuda", "mps", "device"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu"), (True, False, "cuda")],
)
def test_the_fastest_device_is_picked(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto") == device
    assert pick_device("cpu") == "cpu"
    present = ", ".join(["cpu", *(["cuda"] if cuda else []), *(["mps"] if mps else [])])
    for name, there in (("cuda", cuda), ("mps", mps), ("tpu", False), ("", False)):
        if there:
            assert pick_device(name) == name
        else:
            with pytest.raises(SettingError, match=rf"^device {name}: is not there; this machine has: {present}\.$"):
                pick_device(name)


def test_a_gpu_says_whether_it_has_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for able in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able: able)
        assert Machine.here("cuda").fast_bf16 is able
