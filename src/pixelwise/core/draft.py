"""Settings under way: what the user chose stays, and the plan fills in the rest."""

from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pixelwise.core.config import SECTIONS, Config, Overrides, Section, explain, make_config
from pixelwise.core.errors import SettingError


class Draft:
    """The settings of a run that is being planned. What the user chose is checked first, each value by itself.

    Args:
        overrides: what the user chose: section -> key -> value; the section "" holds `seed` and `task`.

    Raises:
        SettingError: a value has the wrong type or is out of range, or the length is given twice.

    >>> draft = Draft({"train": {"patch": 64}})
    >>> draft.fill("train", patch=(256, 256), batch=8)
    >>> draft["train.patch"], draft["train.batch"], draft["train.optimizer"]
    ((64, 64), 8, 'adamw')
    """

    def __init__(self, overrides: Overrides) -> None:
        self._values = {section: dict[str, Any]() for section in ("", *SECTIONS)}
        for section, values in overrides.items():
            self._values[section] = {key: check_value(section, key, value) for key, value in values.items()}
        if self["train.minutes"] is not None and self["train.epochs"] is not None:
            raise SettingError("minutes and epochs exclude each other; set one of them.")
        if self["model.weights"] is not None:
            if self._values["model"].get("pretrained") is False:
                raise SettingError(
                    f"model.weights: {self['model.weights']} is to be started from, but model.pretrained is false: "
                    f"leave one of them out."
                )
            self.fill("model", pretrained=True)

    def fill(self, section: str, **values: Any) -> None:
        """Set what is still open in a section."""
        self._values[section] = {**values, **self._values[section]}

    def __getitem__(self, name: str) -> Any:
        """The value of `section.key`: the chosen one, else the default, else None."""
        section, _, key = name.rpartition(".")
        return self._values[section].get(key, _model(section).model_fields[key].get_default())

    def section(self, name: str) -> dict[str, Any]:
        """What a section holds so far."""
        return dict(self._values[name])

    def config(self) -> Config:
        """All settings together.

        Raises:
            SettingError: one is missing, or they contradict each other.
        """
        sections = {name: values for name, values in self._values.items() if name}
        return make_config({**self._values[""], **sections}, "settings")


def check_value(section: str, key: str, value: Any) -> Any:
    """A single setting in its own type.

    Raises:
        SettingError: it has the wrong type or is out of range.
    """
    model = _model(section)
    field = model.model_fields[key]
    annotation: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    numbers = None if _is_model(annotation) else ConfigDict(allow_inf_nan=False)
    try:
        return TypeAdapter(annotation, config=numbers).validate_python(value)
    except ValidationError as error:
        raise SettingError(f"settings: {explain(error, f'{section}.{key}' if section else key)}") from error


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _model(section: str) -> type[Section]:
    return SECTIONS[section] if section else Config
