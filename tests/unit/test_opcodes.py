"""What keeper and supervisor must agree on (`core.opcodes`)."""

from __future__ import annotations

import hashlib

from craterun.core import native
from craterun.core import opcodes as op
from craterun.core.launchplan import LaunchPlan

_MEANINGS = {2: "0e9ad2831aa4a8d8"}
"""Never change an entry: add one, with the next number."""


def test_a_plan_that_means_something_else_is_another_protocol() -> None:
    def constants(module: object) -> list[tuple[str, object]]:
        return sorted(
            (name, value)
            for name, value in vars(module).items()
            if name.isupper()
            and not name.startswith("_")
            and not isinstance(value, bool)
            and name != "PROTOCOL"
        )

    meaning = repr((constants(op), constants(native), LaunchPlan.__struct_fields__))
    digest = hashlib.sha256(meaning.encode()).hexdigest()[:16]
    assert _MEANINGS[op.PROTOCOL] == digest, "raise opcodes.PROTOCOL, and add it here"
