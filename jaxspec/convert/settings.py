"""Planning of a conversion by the source's family.

A family raises `MissingSettings` at the first setting that it cannot infer. Planning
then continues with a placeholder, so that one error asks for all missing settings.
"""

from jaxspec.checkpoint import KINDS, Checkpoint
from jaxspec.config import from_dict, to_dict
from jaxspec.convert.family import (
    Family,
    MissingSettings,
    Overrides,
    Plan,
    SourceSettings,
)
from jaxspec.convert.reading.source import Source, printable
from jaxspec.errors import ConfigError, JaxspecError


def make_plan(
    source: Source, family: Family, overrides: Overrides, target: Checkpoint | None
) -> Plan:
    """Returns the family's plan for a source.

    Args:
      source: source of the model.
      family: family of the source.
      overrides: settings given by the user.
      target: checkpoint of the model that a drafter was trained for.

    Raises:
      MissingSettings: settings cannot be inferred; the message lists all of them.
      ConfigError: the source's config or shapes are invalid for the family.
    """
    if isinstance(overrides, SourceSettings):
        settings = overrides
    else:
        settings = SourceSettings(overrides)
    missing = MissingSettings(source.name, {})
    while True:
        try:
            plan = _try_plan(
                source, family, settings.with_placeholders(missing), target
            )
            break
        except MissingSettings as error:
            missing = missing.merged_with(error)
        except JaxspecError:
            if not missing.required:
                raise
            break  # a placeholder does not fit; report the missing settings first
    if missing.required:
        raise missing
    return plan


def _try_plan(
    source: Source, family: Family, overrides: Overrides, target: Checkpoint | None
) -> Plan:
    try:
        plan = family.plan(source, overrides, target)
        from_dict(KINDS[plan.kind], to_dict(plan.config))  # checks the type of fields
    except JaxspecError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as e:
        raise ConfigError(
            f"'{source.name}': its config.json or its shapes are invalid for "
            f"{family.name} ({type(e).__name__}: {printable(str(e))}); check that the "
            "files belong together, or choose another --family"
        ) from None
    return plan
