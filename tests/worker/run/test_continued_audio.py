"""What a song begins with when it continues an audio file."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from tests.worker.run.scripted import HOP, RATE
from worker.engine import Abandoned
from worker.run.continued_audio import encoded
from worker.songs import audio_file
from worker.songs.checkpoint_file import Unusable


class Ear:
    """An engine whose tokens are the audio that it was given."""

    sample_rate, hop, channels = RATE, HOP, 1

    def encode(self, audio, go_on):
        return np.concatenate(list(audio))


def heard(path, song_s, engine=None):
    return encoded(audio_file.look(path), song_s, engine or Ear(), lambda: True)


@pytest.fixture
def ramp(tmp_path):
    """20 s and 100 samples whose values say where they are."""
    values = np.linspace(0.1, 0.9, 20 * RATE + 100, dtype=np.float32)
    soundfile.write(tmp_path / "ramp.wav", values, RATE, subtype="FLOAT")
    return tmp_path / "ramp.wav", values


def test_song_longer_than_the_file_begins_with_all_of_its_whole_frames_up_to_its_end(ramp):
    path, values = ramp
    assert np.array_equal(heard(path, 60), values[100:])


@pytest.mark.parametrize("song_s", [12.5, 20])
def test_song_that_is_not_longer_begins_with_the_last_12_s_of_the_file(ramp, song_s):
    path, values = ramp
    assert np.array_equal(heard(path, song_s), values[-12 * RATE :])


def refused(message, *arguments):
    with pytest.raises(Unusable) as caught:
        encoded(*arguments, lambda: True)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_song_without_room_for_anything_new_is_refused(ramp):
    refused("SECONDS must be over 12", audio_file.look(ramp[0]), 12, Ear())


def test_file_that_has_changed_since_the_list_was_read_is_refused(ramp):
    path, values = ramp
    file = audio_file.look(path)
    soundfile.write(path, values[::-1], RATE, subtype="FLOAT")
    refused("ramp.wav has changed since the list was read; start the run again", file, 60, Ear())


def test_file_that_ends_in_silence_is_refused_and_one_that_begins_so_is_not(ramp):
    path, values = ramp
    soundfile.write(path, np.concatenate([values, np.zeros(RATE)]), RATE)
    refused("the end of ramp.wav is silent", audio_file.look(path), 60, Ear())
    soundfile.write(path, np.concatenate([np.zeros(20 * RATE), values[:RATE]]), RATE)
    assert len(heard(path, 60)) == 21 * RATE


def test_whatever_else_goes_wrong_is_that_song_s_fault(ramp):
    broken = SimpleNamespace(sample_rate=RATE, hop=HOP, channels=1, encode=lambda *_: 1 / 0)
    refused("cannot be encoded (ZeroDivisionError: division by zero)", audio_file.look(ramp[0]), 60, broken)


def test_a_stop_is_no_fault(ramp):
    class Stopped(Ear):
        def encode(self, audio, go_on):
            raise Abandoned

    with pytest.raises(Abandoned):
        heard(ramp[0], 60, Stopped())
