"""The pages that are built from the code are what the code says now."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_settings_page_is_current() -> None:
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs" / "make_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run: python docs/make_settings.py"


def test_every_setting_is_on_the_page() -> None:
    from pixelwise.core.config import SECTIONS

    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    missing = [
        f"{name}.{key}"
        for name, model in SECTIONS.items()
        for key in model.model_fields
        if f"`{name}.{key}`" not in page
    ]
    assert missing == []
