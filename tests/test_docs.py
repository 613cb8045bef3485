"""The documentation says what the code does, where that can be told by a program."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from etl_dagster.config import PipelineConfig, load_config
from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.errors import ErrorKind
from etl_dagster.orchestration import PipelineParts
from scripts import docs

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors that its headings get."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_follows_from_the_code_is_up_to_date(page: Path) -> None:
    assert docs.rendered(page.read_text()) == page.read_text(), "run: python scripts/docs.py"


def test_every_generated_part_stands_somewhere() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert [part for part in docs.PARTS if f"<!-- begin {part} -->" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in _LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_every_kind_of_error_has_its_advice() -> None:
    advice = (ROOT / "docs/guide.md").read_text().partition("| kind | usual cause |")[2]
    assert re.findall(r"^\| `(\w+)` \|", advice, flags=re.MULTILINE) == [str(kind) for kind in ErrorKind]


def test_the_config_that_the_readme_shows_is_valid(tmp_path: Path) -> None:
    shown = re.search(r"```yaml\n(.+?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert shown is not None
    path = tmp_path / "etl-dagster.yaml"
    path.write_text(shown[1])
    assert isinstance(load_config(path, {"SOURCE_DSN": "postgresql://etl@localhost/bookshop"}), PipelineConfig)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.+?)```", (ROOT / page).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("block", [*blocks("docs/bigquery.md", "yaml"), blocks("README.md", "yaml")[1]])
def test_the_configs_that_are_shown_of_bigquery_are_valid(block: str, tmp_path: Path) -> None:
    whole = {
        "name": "shop",
        "source": {"connection": {"dsn": "${SOURCE_DSN}"}},
        "destination": {"type": "bigquery", "project": "my-project", "dataset": "shop"},
    }
    path = tmp_path / "etl-dagster.yaml"
    path.write_text(yaml.safe_dump(whole | yaml.safe_load(block)))
    assert isinstance(load_config(path, {"SOURCE_DSN": "postgresql://etl@localhost/shop"}).destination, BigQueryConfig)


def test_the_project_that_is_shown_of_bigquery_replicates_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    key = dict.fromkeys(("client_email", "private_key", "token_uri"), "x") | {"type": "service_account"}
    monkeypatch.setenv("GCP_KEY_BASE64", base64.b64encode(json.dumps(key).encode()).decode())
    (project,) = blocks("docs/bigquery.md", "python")
    names: dict[str, Any] = {}
    exec(project, names)
    parts = names["PIPELINE"]
    assert isinstance(parts, PipelineParts)
    assert isinstance(config := parts.destination_now(), BigQueryConfig)
    assert (config.project, config.location, config.arrays) == ("my-project", "EU", "repeated")
