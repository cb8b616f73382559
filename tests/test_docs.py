"""The pages say what is so: links, examples and field names are checked against the program."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from worker.songs import jobs
from worker.songs.records import Record
from worker.songs.report import REPORT_COLUMNS
from worker.songs.summary import Summary

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
PROMPTS = (ROOT / "docs" / "prompts.md").read_text("utf-8")
OUTPUT = (ROOT / "docs" / "output.md").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_example_list_is_a_good_one():
    (example,) = re.findall(r"```text\n(.*?)```", PROMPTS, re.S)
    assert len(jobs.parse(example.encode())) == 5


def test_shown_errors_are_those_of_the_program():
    (shown,) = re.findall(r"```console\n.*?\n(.*?)```", PROMPTS, re.S)
    wrong = "calm ; 30 ; calm\nnothing\n\nlong ; 1e9 ; long\n\n\nagain ; 30 ; calm\n"
    with pytest.raises(jobs.BadPrompts) as caught:
        jobs.parse(wrong.encode())
    assert shown.splitlines() == [f"error: {problem}" for problem in caught.value.problems]


@pytest.mark.parametrize("name", [*REPORT_COLUMNS, *(field.name for field in fields(Record))])
def test_every_column_and_every_field_of_a_record_is_explained(name):
    assert f"`{name}`" in OUTPUT


def test_every_field_of_a_summary_is_explained():
    absent = [field.name for field in fields(Summary) if f"`{field.name}`" not in OUTPUT]
    assert absent == []
