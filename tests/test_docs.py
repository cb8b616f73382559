"""The pages say what is so: links, examples and field names are checked against the program."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

from tests.listing import commands
from tests.songs import wav_bytes
from worker.songs import jobs
from worker.songs.families import HEARTMULA
from worker.songs.records import Record
from worker.songs.report import REPORT_COLUMNS
from worker.songs.summary import Summary

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
PROMPTS = (ROOT / "docs" / "prompts.md").read_text("utf-8")
OUTPUT = (ROOT / "docs" / "output.md").read_text("utf-8")
SPECIFICATION = (ROOT / "docs" / "specification.md").read_text("utf-8")
TOUR = (ROOT / "docs" / "tour.md").read_text("utf-8")
# Where settings are read.
READS = ("ops/**/*.py", "worker/**/*.py", "remote/*.*", "remote/*/*.py", "tasks.py", "fabfile.py")
# Folders and files that a run makes.
MADE = ("records/", "claims/", "checkpoints/")
# How many points each section of the five documents has; in two of them sections are not numbered.
POINTS = {
    "P": {"": 47},
    "B": {"1": 3, "2": 7, "3.1": 7, "3.2": 5, "3.3": 4, "3.4": 14, "3.5": 2, "3.6": 6, "4": 5, "5": 3},
    "S": {
        **{"1.1": 4, "1.2": 4, "1.3": 4, "1.4": 3, "2.1": 6, "2.2": 4, "3.1": 1, "3.2": 1},
        **{"4.1": 4, "4.2": 4, "4.3": 3, "4.4": 4, "5.1": 4, "5.2": 5, "5.3": 4, "6.1": 4, "6.2": 4, "7": 5},
    },
    "H": {
        **{"1": 5, "2": 3, "3": 5, "4": 1, "5": 3, "6": 2, "7": 2, "8": 1, "9": 1, "10": 5, "11": 1},
    },
    "T": {"": 37},
}


def test_every_link_leads_to_a_file_and_a_heading():
    broken = []
    for page in PAGES:
        for link, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text("utf-8")):
            target = page.parent / link if link else page
            if not target.exists() or (heading and heading not in headings(target)):
                broken.append(f"{page.name}: {link}#{heading}")
    assert broken == [], broken


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_command_on_a_page_exists_with_its_flags():
    wrong = {
        f"{page.name}: {program} {name} {problem}"
        for page in PAGES
        for program, name, problem in commands(page.read_text("utf-8"))
        if problem
    }
    assert wrong == set(), wrong


def test_every_setting_on_a_page_is_one_that_is_read():
    sources = [path for part in READS for path in ROOT.glob(part)]
    text = "\n".join(path.read_text("utf-8") for path in sources)
    unknown = {
        f"{page.name}: {name}"
        for page in PAGES
        for name in re.findall(r"\b(?:MUSICGEN|RUNPOD)_[A-Z0-9_]*[A-Z0-9]\b", page.read_text("utf-8"))
        if not re.search(rf"\b{name}\b", text)
    }
    assert unknown == set(), unknown


def test_songs_that_the_readme_shows_are_those_of_the_list():
    shown = set(re.findall(r"\w+_[0-9a-f]{8}\.wav", (ROOT / "README.md").read_text("utf-8")))
    assert shown
    assert shown <= {job.song for job in jobs.load(ROOT / "prompts.txt")}


def test_messages_of_the_clouds_pages_are_those_of_the_program():
    """Rows whose first cell quotes a message; what varies in it is `...`, a number or a word in capitals."""
    texts = "\n".join(text for path in ROOT.glob("ops/**/*.py") for text in strings_in(path))
    absent = []
    for page in ("aws.md", "aws-setup.md", "runpod.md"):
        text = (ROOT / "docs" / page).read_text("utf-8")
        shown = re.search(r"## (?:Troubleshooting|(?:6\. )?When something).*?\|---.*?\n(.*)", text, re.S)
        for quoted in re.findall(r"`([^`]+)`", "".join(re.findall(r"^\|([^|]*)\|", shown[1], re.M))):
            parts = re.split(r";|\.\.\.|…|\$?\b\d[\d.]*|\b(?:N|ACTION|MUSICGEN_\w+)\b", quoted)
            absent += [(page, quoted) for part in parts if part.strip() and part.strip() not in texts]
    assert absent == [], absent


def strings_in(path: Path) -> list[str]:
    """The texts of a module, each up to the next value that is put into it."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_example_list_is_a_good_one(tmp_path):
    example, table, sung, words, continued, from_audio = re.findall(r"```text\n(.*?)```", PROMPTS, re.S)
    assert len(jobs.parse(example.encode())) == 5
    assert len(jobs.parse(table.encode())) == 2
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "road.txt").write_text(words)
    assert len(jobs.parse(sung.encode(), folder=tmp_path, family=HEARTMULA)) == 2
    assert len(jobs.parse(continued.encode())) == 2
    (tmp_path / "takes").mkdir()
    for name in ("demo.mp3", "album.flac"):
        (tmp_path / "takes" / name).write_bytes(wav_bytes(1))
    assert len(jobs.parse(from_audio.encode(), folder=tmp_path)) == 2


def test_shown_errors_are_those_of_the_program():
    (shown,) = re.findall(r"```console\n.*?\n(.*?)```", PROMPTS, re.S)
    wrong = "calm ; 30 ; calm\nnothing\n\nlong ; 1e9 ; long\n\n\nagain ; 30 ; calm\n"
    with pytest.raises(jobs.BadPrompts) as caught:
        jobs.parse(wrong.encode())
    assert shown.splitlines() == [f"error: {problem}" for problem in caught.value.problems]


def test_every_column_and_every_field_of_a_record_is_explained():
    names = [*REPORT_COLUMNS, *(field.name for field in fields(Record))]
    absent = [name for name in names if f"`{name}`" not in OUTPUT]
    assert absent == [], absent


def test_every_field_of_a_summary_is_explained():
    absent = [field.name for field in fields(Summary) if f"`{field.name}`" not in OUTPUT]
    assert absent == [], absent


def test_specification_has_a_row_for_every_point_once_and_in_order():
    wanted = [
        f"{document}{section}{'.' * bool(section)}{number}"
        for document, sections in POINTS.items()
        for section, n_points in sections.items()
        for number in (range(n_points) if (document, section) == ("B", "3.4") else range(1, n_points + 1))
    ]
    found = [row[0] for row in specification()]
    assert found == wanted, sorted({*found} ^ {*wanted})


def test_each_point_of_the_specification_says_how_far_it_is_and_why():
    state = re.compile(r"works(: .+)?|differs: .+|not yet([;:] .+)?")
    wrong = [row for row in specification() if len(row) != 4 or not state.fullmatch(row[-1])]
    assert wrong == [], wrong


def test_what_does_a_point_of_the_specification_exists():
    absent = []
    for point, _, here, state in specification():
        named = [*re.findall(r"`([^`]+)`", here), *re.findall(r"`((?:ops|remote|worker)/[^`]+)`", state)]
        paths = [path for path in named if re.fullmatch(r"[\w./-]*(/|\.(py|sh|md|txt|example))", path)]
        absent += [(point, path) for path in paths if path not in MADE and not (ROOT / path).exists()]
        if state.startswith("works") and here == "nothing":
            absent.append((point, "nothing does it"))
    assert absent == [], absent


def specification() -> list[list[str]]:
    """The rows of the specification's points: id, what it asks, what does it here, state."""
    rows = re.findall(r"^\| ([PBSHT]\d[\d.]*) \|(.*)\|$", SPECIFICATION, re.M)
    return [[point, *(cell.strip() for cell in rest.split(" | "))] for point, rest in rows]


def test_every_file_and_name_of_the_tour_exists():
    absent = []
    for span in re.findall(r"`([^`\n]+)`", TOUR):
        if not (re.search(r"\.(py|sh)\b", span) or span.endswith("/")) or span in MADE:
            continue
        path, _, name = span.partition(": ")
        if not (ROOT / path).exists() or (name and name not in names_in(ROOT / path)):
            absent.append(span)
    assert absent == [], absent


def test_every_line_of_the_tour_is_in_its_file():
    rows = re.findall(r"^\| [^|]+ \| `([\w./-]+)(?:: [\w.]+)?` \| `(.+)` \|$", TOUR, re.M)
    assert len(rows) >= 5
    absent = [(path, line) for path, line in rows if line not in (ROOT / path).read_text("utf-8")]
    assert absent == [], absent


def names_in(path: Path) -> set[str]:
    """Functions, classes and methods of a module, as `name` or `Class.name`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
    return found
