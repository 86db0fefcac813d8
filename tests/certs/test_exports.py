"""What the package offers: `__all__` of each module is complete, and all of it is documented."""

import importlib
import inspect
import pkgutil

import pytest

import certs

MODULES = sorted(module.name for module in pkgutil.iter_modules(certs.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_lists_what_it_offers_and_documents_it(name: str) -> None:
    module = importlib.import_module(f"certs.{name}")
    defined = {
        thing
        for thing, value in vars(module).items()
        if not thing.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    }
    assert defined <= set(module.__all__)
    for thing in module.__all__:
        value = getattr(module, thing)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{thing} has no docstring"


def test_the_package_explains_every_module() -> None:
    assert certs.__doc__ is not None
    for name in MODULES:
        assert f"\n    {name} " in certs.__doc__, f"{name} is not explained"
