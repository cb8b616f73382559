"""`inv pod.offers`: what RunPod has for a purpose, in which order and why, and why the others will not do."""

import json

import pytest

from ops import measured
from ops.runpod import needs
from ops.runpod.offers import Wanted, offers
from tests.fakes.runpod import gpu_type
from worker.errors import BadInput

MUSICGEN, TRAIN = needs.PURPOSES["musicgen"], needs.PURPOSES["train"]
A40, L40S, A6000 = "NVIDIA A40", "NVIDIA L40S", "NVIDIA RTX A6000"


def judged(us, cap=1.0, purpose=MUSICGEN, clouds=("SECURE",), rates=None, **more):
    return offers(us, Wanted(purpose, clouds, cap, **more), rates or {})


def states(found):
    return {(each.gpu, each.cloud): each.state for each in found}


# --- order


RTX_4090 = "NVIDIA GeForce RTX 4090"
FIRST_CHOICES = [("musicgen", L40S), ("heartmula", A40), ("train", RTX_4090)]


def test_what_will_do_comes_first_and_cheapest_first(us):
    found = judged(us, clouds=("SECURE", "COMMUNITY"))
    assert [(each.gpu, each.per_hour_usd) for each in found if each.will_do] == [
        (A6000, 0.33),
        (A40, 0.35),
        (A40, 0.40),
        (A6000, 0.49),
        (L40S, 0.79),
        (L40S, 0.86),
    ]
    will_do = [each.will_do for each in found]
    assert will_do == sorted(will_do, reverse=True)


@pytest.fixture
def priced(account, us):
    """Four types, of which all but one cost $0.40; -> what is offered for a purpose."""

    def judge(purpose, gpu, usd, **more):
        for each in (A40, L40S, A6000, RTX_4090):
            account.gpus[each] = gpu_type(each, 48, usd if each == gpu else 0.40, US_KS_2="LOW")
        return judged(us, purpose=needs.PURPOSES[purpose], **more)

    return judge


@pytest.mark.parametrize(("purpose", "first"), FIRST_CHOICES)
def test_first_choice_comes_first_up_to_half_more_per_hour(priced, purpose, first):
    found = priced(purpose, first, 0.60)
    assert (found[0].gpu, found[0].why_first) == (first, f"first choice for {purpose}, at most 1.5 x $0.40")
    assert [each.per_hour_usd for each in found[1:]][:3] == [0.40, 0.40, 0.40]
    assert not any(each.why_first for each in found[1:])
    assert priced(purpose, first, 0.61)[0].gpu != first


@pytest.mark.parametrize(("purpose", "first"), FIRST_CHOICES)
def test_first_choice_at_the_price_of_the_others_is_the_cheapest(priced, purpose, first):
    found = priced(purpose, first, 0.40)
    assert (found[0].gpu, found[0].why_first) == (first, "cheapest per hour")


@pytest.mark.parametrize("gone", [{"cap": 0.45}, {"stock": "NONE"}])
def test_first_choice_that_will_not_do_is_not_first(account, us, priced, gone):
    priced("musicgen", L40S, 0.50)
    account.gpus[L40S]["stock"] = {"US-KS-2": gone.get("stock", "LOW")}
    found = judged(us, cap=gone.get("cap", 1.0))
    assert found[0].gpu != L40S and found[0].why_first == "cheapest per hour"


def test_measured_songs_decide_where_all_have_one(priced):
    rates = {A40: 4.0, L40S: 2.0, A6000: 2.0, RTX_4090: 2.0}
    found = priced("musicgen", L40S, 0.41, rates=rates)
    assert (found[0].gpu, found[0].why_first) == (A40, "cheapest per song")
    assert priced("musicgen", L40S, 0.41, rates={A40: 4.0})[0].gpu == L40S


def test_nothing_that_will_do_has_no_first_one(us):
    assert not any(each.why_first for each in judged(us, cap=0.01))


def test_at_the_same_price_what_there_is_more_of_comes_first(account, us):
    account.gpus[A40] = gpu_type(A40, 48, 0.44, EU_RO_1="LOW")
    account.gpus[A6000] = gpu_type(A6000, 48, 0.44, EU_RO_1="HIGH")
    assert [each.gpu for each in judged(us)][:2] == [A6000, A40]


# --- why another is out


@pytest.mark.parametrize(
    ("gpu", "why"),
    [
        ("NVIDIA GeForce RTX 4090", "24 GB of GPU memory, 48 needed"),
        ("NVIDIA H100 80GB HBM3", "over the maximum price of $1.00"),
        ("AMD Instinct MI300X OAM", "not a GPU for CUDA, over the maximum price of $1.00"),
    ],
)
def test_each_type_that_will_not_do_says_why(us, gpu, why):
    assert states(judged(us))[gpu, "SECURE"] == why


def test_type_that_a_cloud_does_not_offer_has_no_price(us):
    found = {each.gpu: each for each in judged(us, clouds=("COMMUNITY",))}
    out = found["NVIDIA H100 80GB HBM3"]
    assert (out.per_hour_usd, out.state) == (None, "not offered in the community cloud")


def test_volume_keeps_to_its_data_center_and_to_the_secure_cloud(account, us):
    account.add_volume(data_center="EU-RO-1")
    found = judged(us, clouds=("SECURE", "COMMUNITY"), volume=us.volumes()[0])
    assert [(each.gpu, each.cloud, each.data_centers) for each in found if each.will_do] == [
        (A40, "SECURE", ("EU-RO-1",)),
        (L40S, "SECURE", ("EU-RO-1",)),
    ]
    out = states(found)
    assert out[A6000, "SECURE"] == "none free in EU-RO-1, where the volume is now"
    assert out[A40, "COMMUNITY"] == "network volumes are in the secure cloud only"


def test_stock_is_that_of_hosts_with_the_image_s_cuda_version(account, us):
    account.gpus[A40]["cuda"] = ["12.4"]
    found = states(judged(us, min_cuda="12.9"))
    assert (found[A40, "SECURE"], found[L40S, "SECURE"]) == ("none free with CUDA 12.9 now", "will do")


# --- price of a song


def test_song_has_a_price_where_bench_has_measured_the_gpu(us):
    found = {each.gpu: each for each in judged(us, rates={A40: 2.0})}
    assert found[A40].song_usd == pytest.approx(0.40 * 180 / 2.0 / 3600)
    assert found[L40S].song_usd is None


def test_measured_rate_lies_between_early_and_late_steps(tmp_path):
    rows = [
        {"case": case, "what": "engine, fp16, 64 slots", "unit": "frames/s", "value": {"median": median}}
        for case, median in (("songs", 1000), ("late", 500), ("few", 7))
    ]
    device = {"device": A40}
    content = {"measured": dict.fromkeys(("songs", "late", "few"), device), "rows": rows}
    (tmp_path / "medium-cuda.json").write_text(json.dumps(content), "utf-8")
    assert measured.rates("facebook/musicgen-medium", tmp_path) == {A40: pytest.approx(2 / 3 * 1000 / 50)}
    assert measured.rates("facebook/musicgen-small", tmp_path) == {}


def test_results_of_this_repository_can_be_read():
    assert all(rate > 0 for rate in measured.rates("facebook/musicgen-small").values())
    assert measured.rates("facebook/musicgen-small")


# --- what a pod must have


def test_floors_are_those_of_the_specifications():
    floors = {
        p.name: (p.gpu_memory_gb, p.ram_gb, p.disk_gb, p.least_disk_gb) for p in needs.PURPOSES.values()
    }
    assert floors["musicgen"][:3] == (48, 32, 100)
    assert floors["heartmula"] == (48, 32, 80, 60)
    assert (floors["train"][2], TRAIN.cap_usd) == (50, 0.50)


def test_pod_is_told_the_least_that_it_may_have():
    assert [purpose.floors_gb for purpose in needs.PURPOSES.values()] == ["48,32,100", "48,32,60", "24,0,50"]


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("runpod/pytorch:1.0.3-cu1290-torch291-ubuntu2204", "12.9"),
        ("runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404", "12.8"),
        ("runpod/pytorch:2.1.0-py3.10-cuda11.8.0-devel-ubuntu22.04", "11.8"),
        ("someone/image:latest", ""),
    ],
)
def test_image_s_tag_says_its_cuda_version(image, version):
    assert needs.min_cuda(image) == version


def test_unknown_purpose_is_bad_input():
    with pytest.raises(BadInput, match="musicgen, heartmula, train"):
        needs.purpose_of("singing")
