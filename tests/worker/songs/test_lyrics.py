"""Lyrics: where they come from, what is wrong with them, and the names they give."""

import sys

import pytest

from worker.songs import jobs, lyrics
from worker.songs.families import HEARTMULA, MUSICGEN
from worker.songs.jobs import BadPrompts

WORDS = "[verse]\nla la\n"


@pytest.fixture
def album(tmp_path):
    """A folder with lyrics of the song `sun`."""
    (tmp_path / "lyrics").mkdir()
    (tmp_path / "lyrics" / "sun.txt").write_text(WORDS)
    return tmp_path


def parse(folder, *lines, family=HEARTMULA):
    return jobs.parse("\n".join(lines).encode(), folder=folder, family=family)


def wrong(folder, *lines):
    with pytest.raises(BadPrompts) as caught:
        parse(folder, *lines)
    return [line.replace(str(folder), "FOLDER").replace("\\", "/") for line in caught.value.problems]


# --- where they come from


def test_lyrics_beside_the_list_are_those_of_the_song_of_that_name(album):
    sun, moon = parse(album, "pop ; 60 ; sun", "pop ; 60 ; moon")
    assert (sun.options["lyrics"], sun.lyrics_text) == ("lyrics/sun.txt", WORDS)
    assert "lyrics" not in moon.options and moon.lyrics_sha256 is None


def test_a_named_file_comes_before_the_one_beside_the_list(album):
    (album / "mine.txt").write_text("[verse]\nmine")
    (sun,) = parse(album, "pop ; 60 ; sun ; lyrics=mine.txt")
    assert sun.lyrics_text == "[verse]\nmine"


def test_song_without_lyrics_gets_section_marks_and_keeps_its_name(album):
    (moon,) = parse(album, "pop ; 60 ; moon")
    assert moon.lyrics_text == lyrics.INSTRUMENTAL
    assert moon.song == parse(album, "pop ; 60 ; moon", family=MUSICGEN)[0].song


def test_name_depends_on_the_content_alone_wherever_the_lyrics_are(album):
    (album / "copy.txt").write_text(WORDS)
    (found,), (named,) = parse(album, "pop ; 60 ; sun"), parse(album, "pop ; 60 ; sun ; lyrics=copy.txt")
    assert found.song == named.song != parse(album, "pop ; 60 ; sun", family=MUSICGEN)[0].song


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])  # Windows, and a Mac of the nineties
def test_byte_order_mark_and_foreign_line_ends_are_not_sung(album, end):
    """heartlib reads a file so that every line ends in the same way."""
    (album / "lyrics" / "sun.txt").write_bytes(b"\xef\xbb\xbf" + WORDS.encode().replace(b"\n", end))
    (sun,) = parse(album, "pop ; 60 ; sun")
    assert sun.lyrics_text == WORDS


def test_model_that_cannot_sing_does_not_look_for_lyrics(album):
    (sun,) = parse(album, "pop ; 60 ; sun", family=MUSICGEN)
    assert (dict(sun.options), sun.lyrics_text) == ({}, "")


# --- what is wrong with them


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the lyrics file FOLDER/lyrics/sun.txt is empty; write the words"),
        (b" \n", "the lyrics file FOLDER/lyrics/sun.txt is empty; write the words"),
        (b"caf\xe9", "the lyrics in FOLDER/lyrics/sun.txt are not UTF-8; save the file with UTF-8 encoding"),
        (b"la\0la", "FOLDER/lyrics/sun.txt is not a text; save the lyrics as plain text"),
        (
            b"la " * 30_000,
            "tags and lyrics of 90,014 bytes do not fit: 60 s leave 7,443 of HeartMuLa's 8,192 positions, "
            "at least 3,814 too few; shorten them or SECONDS",
        ),
    ],
)
def test_lyrics_that_cannot_be_sung_are_one_line_with_the_list_s_line(album, content, says):
    (album / "lyrics" / "sun.txt").write_bytes(content)
    for line in ("pop ; 60 ; sun", "pop ; 60 ; sun ; lyrics=lyrics/sun.txt"):
        (problem,) = wrong(album, "# list", line)
        assert problem.startswith(f"prompts.txt:2: {says}")


def test_absent_file_is_named(album):
    assert wrong(album, "pop ; 60 ; sun ; lyrics=absent.txt") == [
        "prompts.txt:1: no lyrics file at FOLDER/absent.txt; check the path"
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_lyrics_beside_the_list_that_cannot_be_read_are_not_taken_for_none(album):
    (album / "lyrics" / "moon.txt").symlink_to("absent.txt")
    (problem,) = wrong(album, "pop ; 60 ; moon")
    assert problem == "prompts.txt:1: no lyrics file at FOLDER/lyrics/moon.txt; check the path"


def test_field_without_a_file_is_refused(album):
    assert wrong(album, "pop ; 60 ; moon ; lyrics=") == [
        "prompts.txt:1: lyrics= names no file; write its path, or leave the field out"
    ]


def test_song_that_is_too_long_for_the_model_is_refused(album):
    assert wrong(album, "pop ; 655 ; moon", "pop ; 654 ; ok") == [
        "prompts.txt:1: 655 s is over the 654 s of HeartMuLa; shorten SECONDS"
    ]


def test_longest_song_leaves_room_for_section_marks(album):
    (moon,) = parse(album, "a ; 654 ; moon")
    assert not lyrics.too_long(moon.prompt, moon.lyrics_text, moon.seconds)


# --- advice


def test_what_heartmula_is_weak_at_is_a_line_for_each_kind(album):
    (album / "lyrics" / "sun.txt").write_text("la " * 3000)
    songs = parse(album, "slow piano for a rainy day ; 60 ; moon", "pop, happy ; 60 ; sun")
    unsung, sentence, long = lyrics.advice(songs, HEARTMULA)
    assert unsung.startswith("1 song (moon) without lyrics: HeartMuLa is weak at instrumentals")
    assert sentence.startswith("1 song (moon) with a sentence as PROMPT: HeartMuLa wants tags")
    assert long.startswith(
        "1 song (sun) with long lyrics: by their bytes they may not fit the 8,192 positions"
    )


def test_tags_and_lyrics_that_certainly_fit_need_no_advice(album):
    assert lyrics.advice(parse(album, "pop, happy, female vocal ; 180 ; sun"), HEARTMULA) == []


def test_musicgen_needs_no_advice(album):
    assert lyrics.advice(parse(album, "calm ; 60 ; moon", family=MUSICGEN), MUSICGEN) == []
