"""Who answers at the endpoint: adapters brought there together, under their immutable names."""

from __future__ import annotations

from collections.abc import Sequence

from llmops.engines.endpoint import Endpoint, EndpointStatus, System
from llmops.errors import BadRequest, CouldNotRun
from llmops.records import AdapterRecord
from llmops.registry.adapters import require_generating
from llmops.schema import Progress, short


def system_of(record: AdapterRecord, status: EndpointStatus) -> System:
    """An adapter as the endpoint names it.

    Raises:
        BadRequest: the endpoint serves another base.
    """
    if record.base != status.base.digest:
        raise BadRequest(
            f"adapter {record.model_name}: its base is {short(record.base)}, the endpoint serves "
            f"{short(status.base.digest)}; serve its own base"
        )
    return System(record.model_name, record.adapter, record.prompt_contract)


async def load_adapters(endpoint: Endpoint, adapters: Sequence[AdapterRecord], progress: Progress) -> None:
    """Have all adapters loaded at once. Loading one may push out another or restart the engine, so it is checked.

    Raises:
        BadRequest: one of them is a reward model.
        CouldNotRun: the endpoint cannot hold them together.
    """
    for record in adapters:
        require_generating(record)
    missing = list(adapters)
    for _ in range(2):
        for i, record in enumerate(missing):
            progress(i, len(missing), f"loading {record.model_name}")
            loaded = await endpoint.load_adapter(record.adapter)
            if loaded != record.adapter:
                raise CouldNotRun(
                    f"endpoint {endpoint.url}: was asked for {short(record.adapter)}, loaded {short(loaded)}; "
                    "start `llmops serve` in this workspace"
                )
        there = set(await endpoint.models())
        missing = [record for record in adapters if record.model_name not in there]
        if not missing:
            return
    raise CouldNotRun(
        f"endpoint {endpoint.url}: does not hold {len(adapters)} adapters at once ({missing[0].model_name} is gone); "
        "raise `slots` in the serving profile, or ask fewer at once"
    )
