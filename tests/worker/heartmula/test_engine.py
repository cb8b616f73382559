"""The engine's public API: songs of many lengths at once, their ends, resuming them, and faults.

test_against_heartlib.py tests that the tokens are the right ones.
"""

import dataclasses
import re
import shutil
from contextlib import ExitStack
from itertools import count
from unittest import mock

import numpy as np
import pytest
import torch

from tests.worker.heartmula import cases, songs
from worker.decoding import device
from worker.decoding.kernels import NoCompiler
from worker.decoding.offload import Offload
from worker.engine import TO_GENERATE, Abandoned, Failed, Finished, Progress, Sampling, Song, Unfinished
from worker.errors import BadInput, UserError
from worker.heartmula import Engine, pretrained
from worker.heartmula import engine as engine_module
from worker.heartmula.model import SAMPLING
from worker.heartmula.pretrained import Pretrained
from worker.heartmula.stepper import Stepper
from worker.models import heartmula_tree, manifest, tiny_heartmula
from worker.songs.checkpoint_file import OtherSettings, Unusable, from_bytes, to_bytes

pytestmark = pytest.mark.xdist_group("heartmula-engine")

LONG = Song("long", "Piano,Happy", 4.0, 1, "[verse]\nLa la, the SUN\n")  # 50 frames
OTHERS = [
    Song("a", "calm", 0.08, 2),  # one frame
    Song("b", "epic,drums", 3.0, 3, "[intro]\n\n[chorus]\nOh"),
    Song("c", "rain", 0.5, 4, "la " * 30),
    Song("d", "rain", 1.3, 5),
]
FIVE = [LONG, *OTHERS]
EVERY, CHUNK = 16, 8  # positions; in place of 256 and 32


@pytest.fixture(autouse=True)
def short_passes(monkeypatch):
    """As many resume points in a short song."""
    monkeypatch.setattr(engine_module, "_EVERY", EVERY)
    monkeypatch.setattr(engine_module, "_CPU_CHUNK", CHUNK)


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def finished(events):
    assert not of(Failed, events)
    return {event.key: event.tokens for event in of(Finished, events)}


def run(engine, to_make, sampling=SAMPLING):
    """Tokens of each song by key."""
    return finished(list(engine.stream(to_make, sampling)))


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)


@pytest.fixture(scope="module")
def loaded(trees):
    return Pretrained(trees["rehearsal"], "heartmula-rehearsal", "0123456789ab")


@pytest.fixture(scope="module")
def engines(loaded):
    """Engines that tests share: {slots: engine}."""
    return {slots: Engine(loaded, slots=slots) for slots in (1, 3, 8)}


@pytest.fixture
def engine(engines):
    if not engines[3]._model.is_row_exact:
        pytest.skip("no C compiler, or a CPU without AVX2")
    return engines[3]


@pytest.fixture(scope="module")
def events(engines):
    """All events of a run without faults."""
    with mock.patch.multiple(engine_module, _EVERY=EVERY, _CPU_CHUNK=CHUNK):
        return list(engines[3].stream(FIVE, SAMPLING))


@pytest.fixture(scope="module")
def undisturbed(events):
    return finished(events)


def ending(loaded, audio_eos):
    """The same model, whose songs end at tokens from `audio_eos` on."""
    generation = dataclasses.replace(loaded.tree.generation, audio_eos_id=audio_eos)
    return dataclasses.replace(loaded, tree=dataclasses.replace(loaded.tree, generation=generation))


# --- tokens


@pytest.mark.parametrize("sampling", [SAMPLING, Sampling(1.5, greedy=True), Sampling(1.0, 20)])
def test_song_is_the_one_that_a_stepper_makes_by_hand(engine, models, trees, sampling):
    case = cases.Case("rehearsal", 50, 1.5, 1, seed=LONG.seed, tags=LONG.prompt, lyrics=LONG.lyrics)
    by_hand = songs.stepper(models["rehearsal"], case)
    by_hand.reset(sampling)
    songs.begin(by_hand, 0, songs.prompt_of(trees["rehearsal"], case), case)
    songs.advance(by_hand, 50)
    assert np.array_equal(run(engine, FIVE, sampling)["long"], songs.finished(by_hand, 0))


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_songs_are_the_same_with_any_slots_in_any_order(engine, engines, undisturbed, rng, slots):
    assert same(run(engines[slots], rng.sample(FIVE, len(FIVE))), undisturbed)


def test_songs_cover_their_seconds_and_are_int16_codes(undisturbed):
    assert {key: tokens.shape for key, tokens in undisturbed.items()} == {
        "long": (8, 50),
        "a": (8, 1),
        "b": (8, 38),
        "c": (8, 7),
        "d": (8, 17),
    }
    assert all(tokens.dtype == np.int16 and tokens.min() >= 0 for tokens in undisturbed.values())


@pytest.mark.parametrize("change", [{"seed": 9}, {"lyrics": "[verse]\nOh"}, {"prompt": "calm"}])
def test_seed_lyrics_and_tags_each_change_the_song(engine, undisturbed, change):
    assert not np.array_equal(run(engine, [dataclasses.replace(LONG, **change)])["long"], undisturbed["long"])


def test_longer_song_that_comes_later_changes_none_in_progress(engine, loaded, undisturbed):
    late = Song("late", "calm", 30.0, 6)  # more than the columns that the others have
    made = run(Engine(loaded, slots=3), [*FIVE, late])
    assert made.pop("late").shape == (8, 375)
    assert same(made, undisturbed)


def test_progress_grows_to_the_songs_length(events):
    frames = [event.frames["long"] for event in of(Progress, events) if "long" in event.frames]
    assert frames == sorted(frames) and frames[-1] == (50, 50)


# --- early ends


@pytest.fixture(scope="module")
def ends_early(loaded):
    return Engine(ending(loaded, 63), slots=3)


def test_song_ends_before_the_first_frame_that_says_so(engine, ends_early, undisturbed):
    made = run(ends_early, FIVE)
    for key, tokens in undisturbed.items():
        says_so = (tokens >= 63).any(axis=0)
        says_so[0] = False
        n_frames = int(says_so.argmax()) if says_so.any() else tokens.shape[1]
        assert np.array_equal(made[key], tokens[:, :n_frames])
    assert 1 < made["long"].shape[1] < 50
    assert (undisturbed["a"] < 63).all() and made["a"].shape[1] == 1


def test_slot_of_a_song_that_has_ended_is_filled_again_at_once(engine, ends_early, undisturbed):
    """The other songs are the same, and the next one does not wait for the length that was asked."""
    endless = Song("endless", LONG.prompt, 80.0, LONG.seed, LONG.lyrics)
    stream = ends_early.stream([endless, *OTHERS], SAMPLING)
    (last, *_) = [event for event in stream if isinstance(event, Finished) and event.key == "endless"]
    assert last.tokens.shape[1] < 50
    assert not ends_early.unfinished()


def test_song_that_ended_early_is_whole_in_its_last_checkpoint(engine, ends_early):
    made = list(ends_early.stream([LONG], SAMPLING))
    whole = from_bytes(to_bytes(of(Unfinished, made)[-1]))
    assert whole.n_made == whole.tokens.shape[1] < 50
    ends_early.check(whole, SAMPLING)
    again, last = ends_early.stream([whole], SAMPLING)
    assert again.n_made == whole.n_made
    assert np.array_equal(last.tokens, of(Finished, made)[0].tokens)


def test_song_killed_at_any_event_ends_where_it_would_have(engine, ends_early, rng):
    whole = run(ends_early, [LONG])["long"]
    stream = ends_early.stream([LONG], SAMPLING)
    for _ in range(rng.randrange(1, len(list(ends_early.stream([LONG], SAMPLING))) - 1)):
        next(stream)
    stream.close()
    assert np.array_equal(run(ends_early, ends_early.unfinished())["long"], whole)


@pytest.fixture(scope="module")
def with_others(tmp_path_factory, trees):
    """A model of 70 tokens whose codec has 64 codes: 64 to 67 are neither codes nor ends."""
    folder = tmp_path_factory.mktemp("more tokens")
    mula = dataclasses.replace(tiny_heartmula.MULA_CONFIG, audio_vocab_size=70)
    tiny_heartmula.build(folder, mula=mula)
    return ending(Pretrained(heartmula_tree.check(folder), "more", "0"), 68)


def test_token_that_cannot_be_decoded_is_not_chosen_and_changes_nothing_before_it(with_others):
    """Every token before it, in the order of choosing, is heartlib's, which has no such rule."""
    engine, model, n_with = Engine(with_others, slots=1), songs.model(with_others.tree), 0
    for seed in range(8):
        case = cases.Case("rehearsal", 25, 1.5, 50, seed=seed, tags="calm", lyrics="", audio_eos=68)
        without_rule = songs.alone(model, songs.prompt_of(with_others.tree, case), case).T.flatten()
        (made,) = run(engine, [Song("one", "calm", 2.0, seed)]).values()
        engine._codec.codec.check(made)
        wrong = without_rule >= 64
        n_same = (int(wrong.argmax()) if wrong.any() else len(without_rule)) // 8  # frames
        assert np.array_equal(made[:, :n_same].T.flatten(), without_rule[: n_same * 8])
        n_with += wrong.any()
    assert n_with >= 3  # else this would prove little


# --- resuming


def test_song_can_be_resumed_at_every_multiple_of_the_same_positions(events, trees):
    case = cases.Case("rehearsal", 50, 1.5, 50, tags=LONG.prompt, lyrics=LONG.lyrics)
    before = songs.prompt_of(trees["rehearsal"], case).n_positions - 1
    made = [event.n_made for event in of(Unfinished, events) if event.song == LONG]
    assert len(made) >= 4 and made[-1] == 50
    assert all((before + n) % EVERY == 0 for n in made[:-1])


def test_songs_killed_at_any_event_become_the_songs_they_would_have_been(
    engine, engines, events, undisturbed, rng
):
    """From every token made so far, in other slots and another order."""
    stream, made = engine.stream(FIVE, SAMPLING), {}
    for event in (next(stream) for _ in range(rng.randrange(1, len(events)))):
        made |= finished([event])
    stream.close()
    begun = [from_bytes(to_bytes(song)) for song in engine.unfinished()]
    left = [song for song in FIVE if song.key not in {*made, *(one.song.key for one in begun)}]
    assert same(made | run(engines[rng.choice([1, 8])], [*left, *begun]), undisturbed)


@pytest.mark.parametrize("point", range(3))
def test_song_resumed_at_a_resume_point_has_the_same_bytes(engine, engines, events, undisturbed, point):
    saved = [to_bytes(event) for event in of(Unfinished, events) if event.song == LONG][point]
    made = run(engines[8], [OTHERS[1], from_bytes(saved)])
    assert np.array_equal(made["long"], undisturbed["long"])


@pytest.fixture(params=["fp32 without C", "bf16", "bf16 without C"])
def inexact(loaded, request):
    """An engine in which filled positions may differ from steps in their last bits, as on a GPU."""
    dtype, _, without = request.param.partition(" ")
    with ExitStack() as parts:
        if without:
            refused = NoCompiler("left out")
            parts.enter_context(mock.patch("worker.heartmula.attention.build", side_effect=refused))
        engine = Engine(loaded, dtype=dtype, slots=1)
    assert not engine._model.is_row_exact
    return engine


def test_song_is_resumed_exactly_where_it_says_so_in_any_precision(inexact):
    events = list(inexact.stream([LONG], SAMPLING))
    (whole,) = finished(events).values()
    points = of(Unfinished, events)[:-1]
    assert len(points) >= 3
    for point in points:
        assert np.array_equal(run(inexact, [point])["long"], whole)


def test_unfinished_song_holds_the_settings_it_began_with(events):
    one = of(Unfinished, events)[0]
    assert (one.model, one.revision, one.sampling) == ("heartmula-rehearsal", "0123456789ab", SAMPLING)
    assert one.generation_s > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "model other, not heartmula-rehearsal"),
        ({"revision": "0"}, "revision 0, not 0123456789ab"),
        ({"sampling": Sampling(top_k=9)}, "guidance scale 3.0, not 1.5; top k 9, not 50"),
    ],
)
def test_song_that_was_begun_with_other_settings_is_refused_with_the_difference(
    engine, events, change, message
):
    with pytest.raises(OtherSettings, match=message):
        engine.check(dataclasses.replace(of(Unfinished, events)[0], **change), SAMPLING)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((4, 50), np.int16), "have the shape"),
        (np.zeros((8, 51), np.int16), "have the shape"),
        (np.zeros((8, 0), np.int16), "have the shape"),
        (np.full((8, 20), TO_GENERATE, np.int16), "have the shape"),  # shorter, yet not whole
        (np.full((8, 50), 64, np.int16), "are not this model's"),
    ],
)
def test_tokens_of_another_song_or_model_are_refused(engine, events, tokens, message):
    one = next(event for event in of(Unfinished, events) if event.song == LONG)
    with pytest.raises(Unusable, match=message):
        engine.check(dataclasses.replace(one, tokens=tokens), SAMPLING)


def test_seconds_charged_before_are_kept(engine, events):
    one = next(event for event in of(Unfinished, events) if event.song == LONG)
    again = engine.stream([dataclasses.replace(one, generation_s=1000.0)], SAMPLING)
    assert of(Finished, list(again))[0].generation_s > 1000


def test_begun_songs_are_finished_and_no_others_begun(engine, undisturbed):
    made = {}
    for event in engine.stream(FIVE, SAMPLING):
        engine.begin_no_more()
        made |= finished([event])
    assert same(made, {key: undisturbed[key] for key in ("long", "a", "b")})


@pytest.mark.parametrize(
    "how",
    [
        lambda engine: engine.encode([]),
        lambda engine: engine.continued(LONG, None),
        lambda engine: engine.beginning_with(LONG, np.zeros((8, 1), np.int16)),
    ],
)
def test_song_that_continues_another_is_refused(engine, how):
    with pytest.raises(Unusable, match=r"HeartMuLa cannot .*; use a MusicGen"):
        how(engine)


# --- what does not fit


def test_song_over_the_models_positions_fails_alone(engine, undisturbed):
    events = list(engine.stream([Song("over", "calm", 655.0, 1), *FIVE], SAMPLING))
    (failed,) = of(Failed, events)
    assert failed.key == "over"
    assert failed.reason == (
        "its words and its 655 s are 6 positions over the model's 8,192: "
        "a word takes one or two, a second 12.5; shorten it"
    )
    assert same({event.key: event.tokens for event in of(Finished, events)}, undisturbed)


def out_of_memory(monkeypatch, *at_steps):
    step, steps = Stepper.step, count()

    def patched(self, *args):
        if next(steps) in at_steps:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self, *args)

    monkeypatch.setattr(Stepper, "step", patched)


def test_out_of_memory_it_continues_with_half_the_slots(
    loaded, engine, undisturbed, rng, monkeypatch, caplog
):
    wide = Engine(loaded, slots=4)
    out_of_memory(monkeypatch, rng.randrange(40))
    assert same(run(wide, FIVE), undisturbed)
    assert wide.slots == wide.describe()["slots"] == 2
    assert "out of memory: continuing with 2 songs at once" in caplog.text


def test_out_of_memory_while_a_prompt_is_filled_it_continues_with_half_the_slots(
    loaded, engine, undisturbed, rng, monkeypatch
):
    wide, n_th = Engine(loaded, slots=4), rng.randrange(8)
    fill, fills = Stepper.fill, count()

    def patched(self, *args):
        if next(fills) == n_th:
            raise torch.OutOfMemoryError("CUDA out of memory")
        fill(self, *args)

    monkeypatch.setattr(Stepper, "fill", patched)
    assert same(run(wide, FIVE), undisturbed)
    assert wide.slots == 2


def test_song_for_which_not_all_slots_have_room_halves_the_slots(loaded, engine, undisturbed, monkeypatch):
    wide = Engine(loaded, slots=4)
    room = wide._bytes_each * 1000 // 4096  # for 1,000 positions more, of which each slot gets 256
    monkeypatch.setattr(device, "free_bytes", lambda _: room)
    late = Song("late", "calm", 40.0, 6)
    made = run(wide, [*FIVE, late])
    assert made.pop("late").shape == (8, 500)
    assert same(made, undisturbed)
    assert wide.slots == 2


def test_song_for_which_one_slot_has_no_room_fails_alone(loaded, undisturbed, monkeypatch):
    narrow = Engine(loaded, slots=1)
    room = narrow._bytes_each * 300 // 4096
    monkeypatch.setattr(device, "free_bytes", lambda _: room)
    events = list(narrow.stream([*FIVE, Song("late", "calm", 60.0, 6)], SAMPLING))
    (failed,) = of(Failed, events)
    assert failed.key == "late"
    assert re.match(r"not enough memory for one song: .* GB more are needed; use", failed.reason)
    assert same({event.key: event.tokens for event in of(Finished, events)}, undisturbed)


def test_out_of_memory_with_one_slot_the_song_can_still_be_saved(loaded, monkeypatch):
    narrow = Engine(loaded, slots=1)
    out_of_memory(monkeypatch, 20)
    with pytest.raises(UserError, match="not enough memory for one song"):
        run(narrow, [LONG])
    assert [song.n_made for song in narrow.unfinished()] == [20]


# --- logits that are not finite


@pytest.mark.parametrize("n_made", [0, 20])
def test_song_whose_logits_are_not_finite_fails_alone_in_one_line(
    loaded, engine, undisturbed, monkeypatch, n_made
):
    """One song's hidden states become NaN, as those of an overflow do: in its first frame, or later."""
    open_ = Stepper.open

    def patched(self, slot, frames, uniform, n_kept=0):
        newest = open_(self, slot, frames, uniform, n_kept)
        if len(uniform) == undisturbed["long"].shape[1] and frames.shape[1] >= n_made:
            self._input[self._cache.rows(slot)] = torch.nan  # what its next step feeds
        return newest

    monkeypatch.setattr(Stepper, "open", patched)
    events = list(Engine(loaded, slots=2).stream(FIVE, SAMPLING))
    (failed,) = of(Failed, events)
    assert (failed.key, failed.overflowed) == ("long", False)
    assert failed.reason == (
        "its logits became infinite or NaN, and no precision is wider: the checkpoint's weights are damaged; "
        "download it again or use another"
    )
    made = {event.key: event.tokens for event in of(Finished, events)}
    assert same(made, {key: tokens for key, tokens in undisturbed.items() if key != "long"})


# --- audio


def test_audio_is_the_seeds_and_the_tokens_and_the_same_again(engine, undisturbed):
    tokens = undisturbed["c"]
    audio = engine.decode(tokens, seed=4)
    assert (audio.dtype, audio.shape) == (np.float32, (7 * 3840, 2))
    assert np.array_equal(engine.decode(tokens, seed=4), audio)
    assert not np.array_equal(engine.decode(tokens, seed=5), audio)
    assert not np.array_equal(engine.decode(undisturbed["d"][:, :7], seed=4), audio)


class OnFullGpu:
    """A codec on a GPU whose memory ends after so many steps and pieces of each song."""

    device = torch.device("cuda")

    def __init__(self, codec, n_calls):
        self._codec, self._n_calls = codec, n_calls

    def decode(self, tokens, seed, go_on):
        calls = count()

        def until_full():
            if next(calls) == self._n_calls:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return go_on()

        return self._codec.decode(tokens, seed, until_full)

    def to(self, device):
        return self._codec.to(device)


@pytest.mark.parametrize("n_calls", [0, 11])  # in the first step; in the second piece of the audio
def test_song_that_the_gpu_has_no_memory_to_decode_is_decoded_on_the_cpu(
    loaded, undisturbed, n_calls, caplog
):
    engine, tokens = Engine(loaded, slots=1), undisturbed["long"]
    expected = engine.decode(tokens, seed=1)
    engine._codec = Offload(OnFullGpu(engine._codec.codec, n_calls))
    assert np.array_equal(engine.decode(tokens, seed=1), expected)
    assert np.array_equal(engine.decode(tokens, seed=1), expected)
    assert [record.message for record in caplog.records] == [
        "the GPU has no memory left for decoding: songs are decoded on the CPU from now on"
    ]


def test_decoding_ends_when_its_caller_gives_up(engine, undisturbed):
    with pytest.raises(Abandoned):
        engine.decode(undisturbed["c"], lambda: False)


# --- loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "my-heart"
    tiny_heartmula.build(folder)
    return folder


def described(model):
    with pretrained.found(str(model)) as it:
        return it.name, it.revision


def test_rehearsal_and_its_folder_are_one_model_by_two_names(folder):
    (name, revision), (of_folder, same_revision) = described("heartmula-rehearsal"), described(folder)
    assert (name, of_folder) == ("heartmula-rehearsal", "my-heart")
    assert revision == same_revision


def test_other_weights_are_another_revision(folder, tmp_path):
    tiny_heartmula.build(tmp_path / "my-heart", seed=1)
    assert described(tmp_path / "my-heart")[1] != described(folder)[1]


def test_fetched_model_has_the_hubs_commits(folder, tmp_path):
    copy = tmp_path / "my-heart"
    shutil.copytree(folder, copy)
    parts = []
    for repo, below in (("o/gen", ""), ("o/mula", heartmula_tree.MULA), ("o/codec", heartmula_tree.CODEC)):
        files = {
            path.name: manifest.File(path.stat().st_size, "sha256", "0" * 64)
            for path in (copy / below).iterdir()
            if path.is_file()
        }
        parts.append(manifest.Pinned(repo, below, f"{len(parts)}" * 40, files))
    manifest.complete(manifest.Manifest("heartmula-3b", tuple(parts)), copy)
    assert described(copy)[1] == f"{'0' * 40}+{'1' * 40}+{'2' * 40}"
    (copy / "gen_config.json").write_text("{}", "utf-8")  # not what was fetched
    with pytest.raises(BadInput):
        described(copy)


def test_damaged_folder_is_refused_in_one_line(folder, tmp_path):
    copy = tmp_path / "my-heart"
    shutil.copytree(folder, copy)
    weights = copy / heartmula_tree.CODEC / heartmula_tree.SINGLE
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"model.safetensors is truncated .*; fetch it") as caught:
        Engine.load(str(copy))
    assert "\n" not in str(caught.value)


def test_record_of_a_song_names_what_made_it(engine):
    described = engine.describe()
    assert described == {
        "model": "heartmula-rehearsal",
        "revision": "0123456789ab",
        "device": "cpu",
        "precision": "fp32",
        "attention": "compiled",
        "slots": 3,
        "same_bytes": "in any order, with any slots and threads",
        "window_s": 0.0,
        "stride_s": 0.0,
    }


def test_cache_in_half_precision_is_refused(loaded):
    with pytest.raises(BadInput, match="fp32-kv16 is for MusicGen; HeartMuLa runs in fp32, bf16 or fp16"):
        Engine(loaded, dtype="fp32-kv16")


def test_closed_engine_has_given_its_memory_back(loaded):
    engine = Engine(loaded, slots=1)
    run(engine, OTHERS[:1])
    engine.close()
    assert engine.unfinished() == []
    assert not hasattr(engine, "_model")
