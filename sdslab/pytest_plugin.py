"""A fixture for the tests of anyone's score distillation: ``assert_is_sds(gradient, …)``."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def assert_is_sds() -> Callable[..., None]:
    """Fails unless a gradient function is SDS, and says what it is; arguments of `conformance`."""

    def check(gradient: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        from sdslab.gradient_conformance import conformance  # not wherever pytest runs

        found = conformance(gradient, *arguments, **options)
        if not found.is_sds:
            pytest.fail(str(found), pytrace=False)

    return check
