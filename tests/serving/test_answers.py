from __future__ import annotations

from tests.serving.conftest import Stage
from tests.serving.gateway import Endpoint


def test_base_answers(stage: Stage, endpoint: Endpoint) -> None:
    response = endpoint.chat(stage.base.model_name)
    print(response.text, response.headers, endpoint.status())
    assert response.status_code == 200, response.text
    assert endpoint.answered_by(response) == stage.base.digest
    print(endpoint.add(stage.adapters[0]).text)
