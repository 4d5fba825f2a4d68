"""A family's plan for a source: what is missing is asked for at once."""

from jaxspec.checkpoint import KINDS, Checkpoint
from jaxspec.config import from_dict, to_dict
from jaxspec.convert.family import Family, Given, MissingSettings, Plan, Settings
from jaxspec.convert.reading.stored import Source, printable
from jaxspec.errors import ConfigError, JaxspecError


def planned(
    source: Source, family: Family, given: Given, target: Checkpoint | None
) -> Plan:
    """The plan, after everything that it is made from was found or asked for.

    Raises:
      MissingSettings: settings that the source does not tell, all of them.
      ConfigError: the source's config or shapes make no sense for the family.
    """
    settings = given if isinstance(given, Settings) else Settings(given)
    missing = MissingSettings(source.name, {})
    while True:
        try:
            plan = _planned(source, family, settings.with_guesses(missing), target)
            break
        except MissingSettings as error:
            missing = missing.with_those_of(error)
        except JaxspecError:
            if not missing.wanted:
                raise
            break  # a guess does not fit; what is known to be missing comes first
    if missing.wanted:
        raise missing
    return plan


def _planned(
    source: Source, family: Family, given: Given, target: Checkpoint | None
) -> Plan:
    try:
        plan = family.plan(source, given, target)
        from_dict(KINDS[plan.kind], to_dict(plan.config))  # each field of its type
    except JaxspecError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as e:
        raise ConfigError(
            f"'{source.name}': its config.json or its shapes make no sense for "
            f"{family.name} ({type(e).__name__}: {printable(str(e))}); check which "
            "files lie together, or name another --family"
        ) from None
    return plan
