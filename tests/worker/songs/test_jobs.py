"""prompts.txt: the grammar, its errors, and the frozen song names."""

import hashlib
import string
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.songs import wav_bytes
from worker.errors import BadInput
from worker.songs import audio_file, jobs
from worker.songs.job import Job, song_hash
from worker.songs.jobs import BadPrompts


def parse_one(line: str) -> Job:
    (job,) = jobs.parse(line.encode())
    return job


def problems(content: str | bytes) -> list[str]:
    with pytest.raises(BadPrompts) as caught:
        jobs.parse(content if isinstance(content, bytes) else content.encode())
    return caught.value.problems


# --- names never change


@pytest.mark.parametrize(
    ("line", "song"),
    [
        (
            "upbeat electronic dance music with heavy bass ; 30 ; dance_test",
            "dance_test_79fae998.wav",
        ),
        ("cinematic trailer music with epic drums;180;cinema.wav", "cinema_4dae8d21.wav"),
        ("slow; then fast ; 12.5 ; mood", "mood_c1a84455.wav"),
        ("café, нежно, 静か ; 30 ; unicode", "unicode_b6d66073.wav"),
        ("calm piano ; 30 ; calm ; seed=7", "calm_cfddc1b4.wav"),
    ],
)
def test_song_names_never_change(line, song):
    assert parse_one(line).song == song


def test_hash_is_sha256_of_the_fields_joined_by_the_unit_separator():
    joined = "a b\x1f12.5\x1fname\x1fseed=7"
    assert song_hash("a b", 12.5, "name", {"seed": "7"}) == hashlib.sha256(joined.encode()).hexdigest()[:8]


def test_default_seed_is_the_hash_in_the_name():
    job = parse_one("calm piano ; 30 ; calm")
    assert job.seed == int(job.hash8, 16)


def test_given_seed_is_used():
    assert parse_one("calm piano ; 30 ; calm ; seed=7").seed == 7


def test_seed_is_named_by_its_value_not_its_spelling():
    assert parse_one("a ; 30 ; b ; seed=007").song == parse_one("a ; 30 ; b ; seed=7").song


def test_lyrics_are_named_by_their_content(tmp_path):
    def song(text: str) -> str:
        (tmp_path / "words.txt").write_text(text)
        return jobs.parse(b"a ; 30 ; b ; lyrics=words.txt", folder=tmp_path)[0].song

    assert song("la la") == song("la la") != song("lo lo")


# --- what is accepted


# --- songs that continue others


def test_song_that_continues_one_of_the_list_is_named_by_that_song():
    first, more, again = (
        jobs.parse(f"{prompt} ; 30 ; first\nepic ; 60 ; more ; continue={source}\n".encode())
        for prompt, source in (("calm", "first"), ("loud", "first"), ("calm", "first.wav"))
    )
    assert first[1].continues == first[0].stem
    assert first[1].song != more[1].song
    assert first == again


def test_song_may_continue_a_line_further_down_and_one_that_continues_another():
    third, first, second = jobs.parse(
        b"a ; 90 ; third ; continue=second\nb ; 30 ; first\nc ; 60 ; second ; continue=first"
    )
    assert (third.continues, second.continues, first.continues) == (second.stem, first.stem, None)


def test_song_may_continue_a_finished_one_that_is_on_no_list():
    assert parse_one("epic ; 60 ; more ; continue=rain_0123abcd").continues == "rain_0123abcd"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("epic ; 60 ; more ; continue=rain", ["1: continue=rain: no line of this list has that name"]),
        (
            "epic ; 60 ; more ; continue=more",
            ["1: continue=more leads to a song that cannot be made, or back to this one"],
        ),
        (
            "a ; 60 ; x ; continue=y\nb ; 90 ; y ; continue=x",
            ["1: continue=y leads to a song that cannot be made, or back", "2: continue=x leads to a song"],
        ),
        (
            "a ; 60 ; x\nb ; 60 ; y ; continue=x",
            ["2: SECONDS must be over the 60 s of x, which it continues"],
        ),
        ("a ; 60 ; x ; continue=a/b", ["1: continue=a/b: no line of this list has that name"]),
    ],
)
def test_song_that_can_continue_nothing_is_refused(content, what):
    found = problems(content)
    for problem, text in zip(found, what, strict=True):
        assert problem.startswith(f"prompts.txt:{text}")


@pytest.mark.parametrize("order", [1, -1])
def test_chain_of_thousands_of_songs_is_followed(order):
    lines = [f"a ; {i + 10} ; s{i}" + (f" ; continue=s{i - 1}" if i else "") for i in range(3000)]
    chain = jobs.parse("\n".join(lines[::order]).encode())
    assert all(bool(job.continues) == (job.name != "s0") for job in chain)


# --- songs that continue audio files


@pytest.fixture
def album(tmp_path):
    """A folder with a take of 2 s and one of 20 s."""
    (tmp_path / "takes").mkdir()
    (tmp_path / "takes" / "long.WAV").write_bytes(wav_bytes(20))
    (tmp_path / "take.wav").write_bytes(wav_bytes(2))
    return tmp_path


def in_album(album, *lines):
    return jobs.parse("\n".join(lines).encode(), folder=album)


def wrong_in_album(album, *lines):
    with pytest.raises(BadPrompts) as caught:
        in_album(album, *lines)
    return caught.value.problems


def test_audio_that_is_continued_is_named_by_its_content(album):
    (job,) = in_album(album, "epic ; 60 ; more ; continue=take.wav")
    digest = hashlib.sha256(wav_bytes(2)).hexdigest()
    assert job.hash8 == song_hash("epic", 60, "more", {"continue": digest})
    assert (job.continued_file.path, job.continues) == (album / "take.wav", None)
    (album / "take.wav").rename(album / "other.wav")
    assert in_album(album, "epic ; 60 ; more ; continue=other.wav")[0].song == job.song
    (album / "other.wav").write_bytes(wav_bytes(2, level=7))
    assert in_album(album, "epic ; 60 ; more ; continue=other.wav")[0].song != job.song


def test_line_of_the_list_comes_before_a_file_of_its_name(album):
    take, more, file = in_album(
        album,
        "calm ; 30 ; take",
        "epic ; 60 ; more ; continue=take.wav",
        "epic ; 60 ; file ; continue=./take.wav",
    )
    assert (more.continues, more.continued_file) == (take.stem, None)
    assert file.continued_file.path == album / "take.wav"


def test_backslashes_lead_into_a_folder_too(album):
    one, two = in_album(
        album, r"a ; 60 ; one ; continue=takes\long.WAV", "a ; 60 ; two ; continue=takes/long.WAV"
    )
    assert one.options == two.options == {"continue": "takes/long.WAV"}
    assert one.continued_file == two.continued_file


def test_song_may_continue_one_that_continues_a_file(album):
    more, end = in_album(album, "a ; 60 ; more ; continue=take.wav", "b ; 90 ; end ; continue=more")
    assert end.continues == more.stem


def test_table_may_name_audio(album):
    table = b"prompt,seconds,name,continue\ncalm,60,a,take.wav\n"
    assert jobs.parse(table, folder=album) == in_album(album, "calm ; 60 ; a ; continue=take.wav")


@pytest.mark.parametrize(
    "path", ["../take.wav", "/tmp/take.wav", "takes/../../x.wav", "C:\\take.wav", "\\\\a\\b.wav"]
)
def test_audio_outside_the_list_s_folder_is_refused(album, path):
    (problem,) = wrong_in_album(album, f"a ; 60 ; x ; continue={path}")
    assert problem == (
        f"prompts.txt:1: continue={path} must be a path below the list's folder, without `..` and `:`"
    )


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("a ; 60 ; x ; continue=none.flac", "no audio file at"),
        ("a ; 60 ; x ; continue=takes.mp3", "no audio file at"),
        ("a ; 60 ; x ; continue=text.mp3", "is not a WAV, FLAC or MP3 file; convert it"),
        ("a ; 60 ; x ; continue=cut.wav", "is cut off: 500 of 128,044 bytes are there; copy it"),
        ("a ; 60 ; x ; continue=bad.flac", "is damaged: it cannot be read as audio"),
        ("a ; 60 ; x ; continue=short.wav", "has 0.5 s of audio where 1 s is the least"),
        ("a ; 12 ; x ; continue=takes/long.WAV", "SECONDS must be over 12: of a file that is not shorter"),
    ],
)
def test_audio_that_cannot_be_continued_is_named_with_its_remedy(album, line, what):
    (album / "takes.mp3").mkdir()
    (album / "text.mp3").write_text("no music at all")
    (album / "cut.wav").write_bytes(wav_bytes(2)[:500])
    (album / "bad.flac").write_bytes(b"fLaC" + bytes(100))
    (album / "short.wav").write_bytes(wav_bytes(0.5))
    (problem,) = wrong_in_album(album, "# songs", line)
    assert problem.startswith("prompts.txt:2: ") and what in problem and "\n" not in problem


def test_song_may_be_longer_than_the_end_of_a_long_file(album):
    (job,) = in_album(album, "a ; 12.5 ; x ; continue=takes/long.WAV")
    assert job.continued_file.seconds == 20


def test_without_soundfile_only_the_length_is_not_known(album, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    (job,) = in_album(album, "a ; 12 ; x ; continue=takes/long.WAV")
    assert job.continued_file.seconds is None


@given(st.binary(max_size=60))
def test_any_bytes_are_an_audio_file_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "a.wav"
    for head in (b"", b"RIFF\xff\0\0\0WAVE", b"RIFF\0\0\0\0WAVE", b"fLaC", b"ID3", b"\xff\xfb"):
        path.write_bytes(head + content)
        try:
            audio_file.look(path)
        except BadInput as error:
            assert "\n" not in str(error) and ";" in str(error)


def test_fields_are_taken_from_the_right():
    job = parse_one("soft ; slow ; a=b ; 30 ; name ; seed=1")
    assert (job.prompt, job.seconds, job.name, job.options) == (
        "soft ; slow ; a=b",
        30,
        "name",
        {"seed": "1"},
    )


def test_spaces_around_separators_do_not_matter():
    assert parse_one("calm piano;30;calm") == parse_one("  calm piano  ;  30  ;  calm  ")


def test_comments_blank_lines_bom_and_crlf_are_accepted():
    content = b"\xef\xbb\xbf# songs\r\n\r\n  # more\r\ncalm ; 30 ; a\r\ncalm ; 31 ; b"
    assert [(job.name, job.line) for job in jobs.parse(content)] == [("a", 4), ("b", 5)]


def test_wav_suffix_is_dropped():
    assert parse_one("calm ; 30 ; song.wav").name == "song"


@pytest.mark.parametrize("seconds", ["1", "3600", "30.0", "12.25", "007"])
def test_seconds_within_bounds_are_accepted(seconds):
    assert parse_one(f"calm ; {seconds} ; a").seconds == float(seconds)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("3:00", "180"),
        ("0:30", "30"),
        ("1:00:00", "3600"),
        ("2:00.5", "120.5"),
        ("30s", "30"),
        ("30 sec.", "30"),
        ("2 min", "120"),
        ("2m", "120"),
        ("1.5 min", "90"),
        ("1 min 30 s", "90"),
        ("12,5", "12.5"),
        ("12,50 s", "12.5"),
        ("1 h", "3600"),
    ],
)
def test_a_duration_s_written_form_does_not_change_the_song(written, seconds):
    assert parse_one(f"calm ; {written} ; a") == parse_one(f"calm ; {seconds} ; a")
    assert parse_one(f"calm ; {written} ; a").song == parse_one(f"calm ; {seconds} ; a").song


# --- a spreadsheet's table


@pytest.mark.parametrize(
    "table",
    [
        'prompt,seconds,name\n"soft; slow, ""a=b""",3:00,one\n\nloud,20,two\n',
        'prompt;seconds;name\r\n"soft; slow, ""a=b""";180;one.wav\r\nloud;20,0;two\r\n',
        'Name\tPrompt\tSeconds\t\none\t"soft; slow, ""a=b"""\t180\t\ntwo\tloud\t20\t\n',
    ],
    ids=["csv", "European csv", "tsv"],
)
def test_table_is_the_list_that_it_shows(table):
    plain = 'soft; slow, "a=b" ; 180 ; one\nloud ; 20 ; two\n'
    assert jobs.parse(table.encode()) == jobs.parse(plain.encode())


@pytest.mark.parametrize(
    "line",
    [
        "slow; rain on a window ; 3:00 ; rain ; seed=7",
        "calm ; 30 ; calm",
        'the "best" song ; 30 ; best',
        '"quoted" start ; 30 ; quoted',
    ],
)
def test_heading_changes_no_line_of_a_text_list(line):
    assert jobs.parse(f"PROMPT ; Seconds ; NAME\n# one\n\n{line}\n".encode()) == [parse_one(line)]


def test_heading_that_is_not_the_first_line_is_named():
    (problem,) = problems("calm ; 30 ; a\nprompt ; seconds ; name\n")
    assert problem.endswith("put # before a heading")


@pytest.mark.parametrize("row", ["slow;30;a", '"slow";30;a', "slow;30;a;", "slow;30;a;;"])
def test_row_of_a_spreadsheet_with_empty_columns_is_a_song(row):
    assert jobs.parse(f"prompt;seconds;name;\n;;;\n{row}\n".encode()) == [parse_one("slow ; 30 ; a")]


def test_comments_are_skipped_in_a_table():
    table = b"# songs\nprompt,seconds,name\n# more\n#calm,30,a\n"
    assert [job.prompt for job in jobs.parse(table)] == ["#calm"]


def test_table_may_have_seeds_and_lyrics(tmp_path):
    (tmp_path / "words.txt").write_text("la")
    table = b"name,seed,seconds,prompt,lyrics\na,7,30,calm,words.txt\nb,,30,calm,\n"
    first, second = jobs.parse(table, folder=tmp_path)
    assert first == jobs.parse(b"calm ; 30 ; a ; seed=7 ; lyrics=words.txt", folder=tmp_path)[0]
    assert second.options == {}


@pytest.mark.parametrize(
    ("table", "line", "what"),
    [
        ("calm,30,a\nsoft, slow,30,b", 3, "4 cells under 3 columns; put a prompt that contains `,` in"),
        ("calm,30", 2, "2 cells under 3 columns"),
        ("calm", 2, "1 cell under 3 columns"),
        ("calm,30,a\n,30,b", 3, "the prompt is empty"),
        ("calm,30,a/b", 2, "NAME 'a/b' contains '/'"),
        ('"calm\nslow",30,a', 2, "the prompt has several lines; write it in one"),
        ('calm,30,a\n"soft,30,b', 3, "a quotation mark is not closed"),
    ],
)
def test_wrong_row_is_named_with_its_line(table, line, what):
    (problem,) = problems(f"prompt,seconds,name\n{table}\n")
    assert problem.startswith(f"prompts.txt:{line}: ") and what in problem


def test_unknown_column_is_named():
    (problem,) = problems("prompt,seconds,name,tempo\ncalm,30,a,120\n")
    assert problem.startswith(
        "prompts.txt:1: column 'tempo' is not one of prompt, seconds, name, seed, lyrics"
    )


@pytest.mark.parametrize("heading", ["Prompt,Length,Title", "prompt\tlength\ttitle"])
def test_heading_with_other_names_is_told_the_right_ones(heading):
    (problem,) = problems(f"{heading}\ncalm,30,a\nsoft,30,b\n")
    assert problem == (
        "prompts.txt:1: the columns are called prompt, length, title; call them prompt, seconds, name"
    )


# --- what is refused, with its line and remedy


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("calm piano", "1 of 3 fields; write PROMPT ; SECONDS ; NAME"),
        ("calm piano ; 30", "2 of 3 fields; write PROMPT ; SECONDS ; NAME"),
        (" ; 30 ; a", "the prompt is empty"),
        ("calm ; ; a", "SECONDS '' is not a duration"),
        ("calm ; soon ; a", "SECONDS 'soon' is not a duration; write it like 30, 12.5, 3:00 or 2 min"),
        ("calm ; 0 ; a", "0 s is not between 1 and 3600"),
        ("calm ; 0.99 ; a", "0.99 s is not between 1 and 3600"),
        ("calm ; -5 ; a", "-5 s is not between 1 and 3600"),
        ("calm ; NaN ; a", "NaN s is not between 1 and 3600"),
        ("calm ; inf ; a", "inf s is not between 1 and 3600"),
        ("calm ; 1e9 ; a", "1e9 s is not between 1 and 3600; change SECONDS or split the song"),
        ("calm ; 3600.01 ; a", "3600.01 s is not between 1 and 3600"),
        ("calm ; 30.001 ; a", "SECONDS '30.001' is not plain with at most two decimals"),
        ("calm ; 3e1 ; a", "SECONDS '3e1' is not plain"),
        ("calm ; ٣٠ ; a", "SECONDS '٣٠' is not a duration"),
        ("calm ; 30 ; ", "NAME is empty"),
        ("calm ; 30 ; .wav", "NAME is empty"),
        ("calm ; 30 ; ../x", "contains '/'; use only A-Z a-z 0-9 - _ ."),
        ("calm ; 30 ; a\\b", "contains '\\\\'"),
        ("calm ; 30 ; é", "contains 'é'"),
        ("calm ; 30 ; " + "x" * 101, "NAME has 101 characters; use at most 100"),
        ("calm ; 30 ; a ; seed=-1", "seed=-1 is not a whole number"),
        ("calm ; 30 ; a ; seed=1.5", "seed=1.5 is not a whole number"),
        ("calm ; 30 ; a ; seed=" + "9" * 5000, "is not a whole number"),
        ("calm ; 30 ; a ; seed=1 ; seed=2", "seed= is given twice"),
        ("calm ; 30 ; a ; tempo=120", "unknown field tempo=; known are seed=, lyrics="),
        ("calm ; 30 ; a ; lyrics=absent.txt", "no lyrics file at absent.txt"),
        ("calm ; 1,000 ; a", "SECONDS '1,000' is not a duration"),
        ("calm ; 1:75 ; a", "SECONDS '1:75' is not a duration"),
        ("calm ; 30 s 1 min ; a", "is not a duration"),
        ("calm ; 2 h ; a", "7200 s is not between 1 and 3600"),
        ("calm ; 30 ; a ;", "a `;` at the end; remove it"),
        ("calm ; 30 ; a ; seed=7 ;", "a `;` at the end; remove it"),
        ("calm ; 30 ;", "NAME is empty"),
        ("calm\t30\ta", "separated by tabs; write ` ; ` instead, or a first line with the columns' names"),
        ("calm, slow,30,a", "separated by commas; write ` ; ` instead, or"),
        ("calm\uff1b30\uff1ba", "separated by the full-width `\uff1b`; write ` ; ` instead"),
        ("calm | 3:00 | a", "separated by `|`; write ` ; ` instead"),
        ('"calm ; 30 ; a"', "in quotation marks, as a spreadsheet writes it; remove them"),
        ('"calm";"30";"a"', "in quotation marks, as a spreadsheet writes it; remove them"),
        ("calm ; 30 ; song.mp3", "songs are WAV files; leave .mp3 out"),
        ("ca\x00lm ; 30 ; a", "control character U+0000; remove it"),
        ("ca\x1flm ; 30 ; a", "control character U+001F; remove it"),
    ],
)
def test_wrong_line_is_named_with_its_remedy(line, what):
    (problem,) = problems(f"# a comment\n{line}\n")
    assert problem.startswith("prompts.txt:2: ")
    assert what in problem


def test_line_of_separators_is_refused():
    assert len(problems("calm" + ";" * 5000)) == 2


def test_every_error_of_a_file_is_reported_at_once():
    found = problems("calm ; 0 ; a/b\ncalm ; 30 ; fine\n ; x ; fine\n")
    assert [p.split(": ")[0] for p in found] == [
        "prompts.txt:1",
        "prompts.txt:1",
        "prompts.txt:3",
        "prompts.txt:3",
        "prompts.txt:3",
    ]


def test_two_songs_of_one_name_are_refused():
    (problem,) = problems("calm ; 30 ; a\nloud ; 40 ; a.wav\n")
    assert problem == "prompts.txt:2: NAME 'a' is already used in line 1; give each song its own name"


@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n", "\ufeff"])
def test_file_without_songs_is_refused(content):
    assert problems(content) == ["prompts.txt:1: no songs; add a line like `calm piano ; 30 ; my_song`"]


def test_file_that_is_not_utf8_is_refused_with_its_line():
    assert problems("calm ; 30 ; a\ncafé ; 30 ; b".encode("latin-1")) == [
        "prompts.txt:2: not UTF-8, perhaps Latin-1; "
        "save the file with UTF-8 encoding (Notepad: Save as, Encoding; Excel: CSV UTF-8)"
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_named(encoding):
    (problem,) = problems("calm ; 30 ; a\n".encode(encoding))
    assert problem.startswith("prompts.txt:1: UTF-16, which Windows calls Unicode; save the file with UTF-8")


def test_many_mistakes_are_counted_at_the_end():
    found = problems("calm ; 30 ; fine\n" + "nothing\n" * 30)
    assert len(found) == 31
    assert found[-1] == "prompts.txt: 30 mistakes in 31 lines; correct them"


def test_no_more_than_a_hundred_mistakes_are_shown():
    found = problems("nothing\n" * 3000)
    assert len(found) == 101
    assert found[-1] == (
        "prompts.txt: 3,000 mistakes in 3,000 lines, of which the first 100 are shown; correct them"
    )


def test_list_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "list.txt").write_text("calm ; 30 ; a\n")
    assert [job.name for job in jobs.load(Path("~/list.txt"))] == ["a"]


def test_missing_file_is_an_error_of_one_line():
    with pytest.raises(BadInput, match=r"no prompts file at nowhere\.txt; check the path"):
        jobs.load(Path("nowhere.txt"))


# --- selecting


def test_select_takes_names_and_song_names_in_file_order():
    listed = jobs.parse(b"a ; 1 ; one\na ; 2 ; two\na ; 3 ; three")
    assert jobs.select(listed, [listed[2].song, "one"]) == [listed[0], listed[2]]


@pytest.mark.parametrize(("name", "shown"), [("four", "four"), ("", "''"), (".wav", "''")])
def test_select_of_an_unknown_name_is_refused(name, shown):
    with pytest.raises(BadInput, match=f"no song named {shown} in the prompts file; it has one"):
        jobs.select(jobs.parse(b"a ; 1 ; one"), [name])


# --- any valid job survives write -> parse


def written(listed: list[Job]) -> str:
    """The prompts file that parses to these jobs."""
    lines = (
        " ; ".join([job.prompt, f"{job.seconds:g}", job.name, *(f"{k}={v}" for k, v in job.options.items())])
        for job in listed
    )
    return "".join(line + "\n" for line in lines)


prompts = (
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
    .map(str.strip)
    .filter(lambda text: text and not text.startswith(("#", "\ufeff")))
)
OTHER_AUDIO = (".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma")
valid_jobs = st.builds(
    Job,
    prompt=prompts,
    seconds=st.integers(100, 360_000).map(lambda hundredths: hundredths / 100),
    name=st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=100).filter(
        lambda name: not name.lower().endswith((".wav", *OTHER_AUDIO))
    ),
    options=st.one_of(st.just({}), st.integers(0, jobs.MAX_SEED).map(lambda seed: {"seed": str(seed)})),
)


@given(st.lists(valid_jobs, min_size=1, unique_by=lambda job: job.name))
def test_any_valid_job_survives_write_and_parse(listed):
    again = jobs.parse(written(listed).encode())
    assert again == listed
    assert [job.song for job in again] == [job.song for job in listed]


@given(st.binary())
def test_any_bytes_parse_or_are_refused_with_line_numbers(content):
    try:
        assert jobs.parse(content)
    except BadPrompts as error:
        assert error.problems
        assert all(problem.startswith("prompts.txt:") for problem in error.problems)


@given(st.text())
def test_any_name_that_is_accepted_is_a_plain_file_name(name):
    try:
        job = parse_one(f"calm ; 30 ; {name}")
    except BadPrompts:
        return
    assert Path(job.song).name == job.song
