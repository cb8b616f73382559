"""The tokens of the audio file that a song begins with.

Encoded when the song is begun, so a file that has changed since the list was read costs that song alone.
"""

from collections.abc import Callable

from worker.audio.reading import Unreadable, opened
from worker.engine import Abandoned, Engine, Tokens
from worker.errors import BadInput
from worker.songs.audio_file import END_S, AudioFile, used_s
from worker.songs.checkpoint_file import Unusable


def encoded(file: AudioFile, song_s: float, engine: Engine, go_on: Callable[[], bool]) -> Tokens:
    """[n_codebooks, n_frames] of the file, or of its end if it is not shorter than the song.

    Whole frames up to the last sample: what is left over, under a frame, is missing at the beginning.
    Raises Unusable, in one line, whatever is wrong with the file, and Abandoned.
    """
    try:
        with opened(file.path, file.sha256) as source:
            n_samples = round(used_s(source.seconds, song_s) * engine.sample_rate)
            n_samples -= n_samples % engine.hop
            if not n_samples:
                raise Unusable(f"{file.path.name} is too short")
            n_heard = min(n_samples, round(END_S * engine.sample_rate))
            if source.end(n_heard, engine.sample_rate, engine.channels).is_silent:
                raise Unusable(f"the end of {file.path.name} is silent; cut the silence off")
            return engine.encode(source.end(n_samples, engine.sample_rate, engine.channels), go_on)
    except (Abandoned, Unusable):
        raise
    except (Unreadable, BadInput) as error:
        raise Unusable(str(error)) from None
    except Exception as error:  # this song's fault alone; the others continue
        raise Unusable(f"{file.path.name} cannot be encoded ({type(error).__name__}: {error})") from None
