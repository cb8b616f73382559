"""ops/runpod/plan.py, prepare.py, container.py: what is asked of RunPod, and what is refused before that."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from ops.runpod import needs
from ops.runpod.prepare import PodOptions, checked, prepare
from ops.settings import Settings
from worker.errors import BadInput, UserError
from worker.models import needs as models
from worker.songs import families

NOW = datetime(2026, 11, 22, 19, 50, 59, tzinfo=UTC)


def asked(plan, **more):
    """The request for the first offer."""
    return plan.request(plan.candidates[0], "musicgen-1", NOW, **more)


def test_request_is_exactly_this(plan, ssh_key):
    request = asked(plan(lifetime=timedelta(hours=8)))
    entrypoint, cmd = request.pop("entrypoint"), request.pop("cmd")
    assert request == {
        "name": "musicgen-1",
        "image": "runpod/pytorch:1.0.3-cu1290-torch291-ubuntu2204",
        "cloud": "SECURE",
        "gpu": {"id": "NVIDIA A40", "count": 1, "minCudaVersion": "12.9", "minRamPerGpu": 32},
        "disk": 100,
        "ports": ["22/tcp"],
        "startSsh": True,
        "env": {
            "PUBLIC_KEY": ssh_key.with_suffix(".pub").read_text("utf-8").strip(),
            "MUSICGEN_LIFETIME_END": str(int(NOW.timestamp()) + 8 * 3600),
            "MUSICGEN_FLOORS_GB": "48,32,100",
            "HOURLY_COST_USD": "0.4",
        },
    }
    assert entrypoint[:2] == ["/bin/sh", "-c"] and cmd == ["/start.sh"]
    assert len(json.dumps(request)) + len(entrypoint[2]) < 50_000  # RunPod takes 100 kB


def test_volume_ties_the_pod_to_its_data_center(plan, account, monkeypatch):
    monkeypatch.setenv("RUNPOD_NETWORK_VOLUME_ID", account.add_volume(data_center="US-KS-2"))
    request = asked(plan())
    assert request["dataCenterIds"] == ["US-KS-2"] and request["cloud"] == "SECURE"
    assert request["mounts"] == {"network": [{"volumeId": "vol0000001", "path": "/workspace"}]}


def test_volume_that_does_not_hold_the_model_is_refused_before_anything_is_created(
    plan, account, monkeypatch
):
    monkeypatch.setenv("RUNPOD_NETWORK_VOLUME_ID", account.add_volume(size=20, data_center="US-KS-2"))
    assert plan()
    monkeypatch.setenv("MUSICGEN_MODEL", "heartmula")
    with pytest.raises(BadInput, match=r"has 20 GB, and the files of heartmula take 22\.4 GB; make a larger"):
        plan()


def test_without_a_volume_no_data_center_is_named(plan):
    assert not {"dataCenterIds", "mounts"} & asked(plan()).keys()


def test_purpose_has_its_own_floors_and_disk(plan):
    request = asked(plan(purpose="train"))
    assert request["disk"] == 50 and "minRamPerGpu" not in request["gpu"]
    assert request["env"]["MUSICGEN_FLOORS_GB"] == "24,0,50"


def test_settings_that_hold_before_the_install_are_sent_and_secrets_are_not(plan, account, monkeypatch):
    monkeypatch.setenv("MUSICGEN_IDLE_LIMIT_S", "600")
    monkeypatch.setenv("MUSICGEN_STOP_HOOK", "/opt/off")
    monkeypatch.setenv("HOURLY_COST_USD", "0.5")
    monkeypatch.setenv("HF_TOKEN", "hf_PLANTED")
    request = asked(plan())
    assert request["env"].items() >= {
        ("MUSICGEN_IDLE_LIMIT_S", "600"),
        ("MUSICGEN_STOP_HOOK", "/opt/off"),
        ("HOURLY_COST_USD", "0.5"),
    }
    assert "PLANTED" not in json.dumps(request)


def test_image_whose_cuda_is_not_known_is_asked_for_without_one(plan, monkeypatch):
    monkeypatch.setenv("RUNPOD_IMAGE", "somebody/image:1")
    request = asked(plan())
    assert request["image"] == "somebody/image:1" and "minCudaVersion" not in request["gpu"]


def test_names_are_this_project_s_and_each_once(plan):
    made = plan(purpose="heartmula")
    names = {made.new_name(NOW) for _ in range(3)}
    assert len(names) == 3 and all(name.startswith("musicgen-heartmula-20261122T195059Z-") for name in names)


def test_plan_says_what_it_may_cost(plan):
    rows = {row["what"]: row["plan"] for row in plan(lifetime=timedelta(hours=10)).rows()}
    assert rows["price now"] == "$0.40 per hour" and rows["maximum price"] == "$0.90 per hour"
    assert rows["worst case"].startswith("$9.14 ")  # ten hours, and 100 GB of disk
    assert rows["kept at a stop"].startswith("none")


# --- refused before any call


@pytest.mark.parametrize(
    ("options", "env", "words"),
    [
        ({"spot": True}, {}, "no spot pods"),
        ({"bid": "0.20"}, {}, "takes no bids"),
        ({"cloud": "community"}, {"RUNPOD_NETWORK_VOLUME_ID": "vol1"}, "secure cloud only"),
        ({}, {"RUNPOD_HOST": "pod1-1@ssh.runpod.io"}, "takes no files"),
        ({"disk_gb": 59, "purpose": "heartmula"}, {}, "59 GB of disk are too little"),
        ({"purpose": "singing"}, {}, "--for singing"),
        ({"commercial": True}, {}, "forbids commercial use"),
        ({}, {"MUSICGEN_COMMERCIAL": "1"}, "forbids commercial use"),
        ({"purpose": "heartmula", "commercial": True}, {}, "musicgen-medium have the licence"),
        (
            {},
            {"MUSICGEN_MODEL": "heartmula", "MUSICGEN_HEARTMULA_DIR": "."},
            "fetch it: `inv models --get heartmula-3b`",
        ),
        ({"lifetime": timedelta(minutes=9)}, {}, "from 10 minutes to 7 days"),
        ({}, {"MUSICGEN_LIFETIME_H": "0"}, "from 10 minutes to 7 days"),
        ({}, {"RUNPOD_SSH_KEY": "/nowhere/key"}, "no SSH key"),
    ],
)
def test_what_cannot_work_is_refused_before_any_call(account, ssh_key, monkeypatch, options, env, words):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=words):
        checked(Settings.load(), PodOptions(**options))
    assert account.calls == []


@pytest.mark.parametrize(
    ("model", "purpose"),
    [("heartmula", "heartmula"), ("heartmula-3b", "heartmula"), ("facebook/musicgen-large", "musicgen")],
)
def test_pod_is_for_the_model_that_is_set(account, ssh_key, monkeypatch, model, purpose):
    monkeypatch.setenv("MUSICGEN_MODEL", model)
    asked = checked(Settings.load(), PodOptions(commercial=False))
    assert asked.purpose is needs.PURPOSES[purpose] and asked.disk_gb == asked.purpose.disk_gb


def test_pod_for_heartmula_may_be_commercial_and_training_uses_no_weights_of_ours(
    account, ssh_key, monkeypatch
):
    assert checked(Settings.load(), PodOptions(purpose="train", commercial=True))
    monkeypatch.setenv("MUSICGEN_MODEL", "heartmula")
    assert checked(Settings.load(), PodOptions(commercial=True)).purpose.name == "heartmula"


@pytest.mark.parametrize("model", ["facebook/musicgen-large", "heartmula"])
def test_a_pod_s_floors_hold_what_its_model_cannot_do_without(model):
    least, floors = models.of(model, {}), needs.PURPOSES[families.of(model).name.lower()]
    assert least.gpu_gb < floors.gpu_memory_gb * 0.92 and least.ram_gb < floors.ram_gb
    assert least.files_gb + 20 < floors.least_disk_gb  # beside its packages and songs


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(hours=-1)])
def test_wrong_clock_is_refused_before_anything_is_created(plan, account, ahead):
    account.clock_ahead = ahead
    with pytest.raises(BadInput, match="this machine's clock is 60 min"):
        plan()


def test_volume_where_no_gpu_will_do_is_named(account, us, ssh_key, monkeypatch):
    monkeypatch.setenv("RUNPOD_NETWORK_VOLUME_ID", account.add_volume(data_center="US-TX-3"))
    settings = Settings.load()
    with pytest.raises(UserError, match="no offer will do"):
        prepare(us, settings, checked(settings, PodOptions(max_price_usd=0.50)))
