"""inv pod.resume: the pod runs with a new end, within its price and with a GPU, or is stopped again."""

import signal
from datetime import UTC, datetime, timedelta

import pytest

from ops import boxes
from ops.runpod import cli_resume, http
from ops.runpod.container import ARMED
from ops.runpod.pods import FLOORS
from ops.runpod.ready import SshChecks
from ops.settings import Settings
from worker.errors import BadInput, Refused, UserError

FINGERPRINT = "SHA256:" + "A" * 43
OLD = "SHA256:" + "B" * 43


@pytest.fixture
def stopped(account, us, request_of):
    """Create a pod, let it run, stop it; -> its id."""

    def make(name="musicgen-1", **more):
        account.ids = "k2u8d5v3q{:05d}"
        env = {"PUBLIC_KEY": "ssh-ed25519 AAAA me", "HOURLY_COST_USD": "0.4", "MUSICGEN_LIFETIME_END": "1"}
        made = us.create_pod(request_of(name, **({"env": env} | more)))
        for _ in range(2):
            us.pods()
        us.stop(made.id)
        return made.id

    return make


@pytest.fixture
def resume(account, clock, monkeypatch, capsys):
    """`inv pod.resume --yes`, whose login is a function; -> what was said. No time passes."""
    monkeypatch.setattr(http, "Clock", lambda: clock)

    def run(pod="", login=lambda box: "", recreate=None, yes=True, dry_run=False, json=False, **more):
        options = cli_resume.ResumeOptions(pod=pod, **more)
        checks = SshChecks(login, lambda box: "no timer runs there")
        try:
            cli_resume.resume_pod(
                Settings.load(), options, checks, recreate, yes=yes, dry_run=dry_run, json=json
            )
        finally:
            run.said = capsys.readouterr()
        return run.said.err

    return run


def keys(account, pod, fingerprint=FINGERPRINT):
    """The container prints its host keys as soon as it starts."""
    enter = account._enter

    def entered(started):
        enter(started)
        if started.id == pod:
            started.log("container", "SSH host keys:", f"256 {fingerprint} root@pod (ED25519)", "Pod Started")

    account._enter = entered


def refused(account, pod, status, detail):
    account.fault("POST", f"/v2/pods/{pod}/action", status, detail)


# --- what it does


def test_new_end_is_given_while_it_is_stopped_and_the_rest_of_its_environment_stays(account, stopped, resume):
    pod = stopped()
    resume(lifetime=timedelta(hours=3))
    (change,) = account.sent("PATCH", f"/v2/pods/{pod}")
    end = int(change["env"].pop("MUSICGEN_LIFETIME_END")) - datetime.now(UTC).timestamp()
    assert change == {"env": {"PUBLIC_KEY": "ssh-ed25519 AAAA me", "HOURLY_COST_USD": "0.4"}}
    assert end == pytest.approx(3 * 3600, abs=60)
    actions = [call.method for call in account.calls if call.path.startswith(f"/v2/pods/{pod}")]
    assert actions.index("PATCH") < len(actions) - 1 - actions[::-1].index("POST")


def test_resumed_pod_is_the_current_box_with_the_address_of_this_start(account, stopped, resume):
    pod = stopped()
    said = resume()
    box = boxes.current()
    assert (box.id, box.port, box.hourly_usd) == (pod, 40002, 0.4)
    assert "runs again, at $0.40 an hour" in said
    assert resume.said.out.endswith(f"{pod}  root@203.0.113.7:40002\n")


def test_host_keys_are_those_that_the_log_names_since_this_start(account, stopped, resume):
    pod = stopped()
    account.pods[pod].log("container", "SSH host keys:", f"256 {OLD} root@pod (ED25519)")
    keys(account, pod)
    assert "its own log names them" in resume()
    pins = boxes.folder_of(pod)
    assert (pins / "known_hosts.expected").read_text() == f"{FINGERPRINT}\n"


def test_keys_of_an_earlier_start_are_not_trusted(account, stopped, resume):
    pod = stopped()
    account.pods[pod].log("container", "SSH host keys:", f"256 {OLD} root@pod (ED25519)")
    assert "its log names none: the first one seen is trusted" in resume()


def test_login_is_tried_before_it_is_called_ready(account, stopped, resume):
    pod, tried = stopped(), []
    resume(login=tried.append)
    assert [(box.id, box.port) for box in tried] == [(pod, 40002)]


@pytest.fixture
def created(stopped):
    """Create a pod as `inv pod.create` does, let it run, stop it; -> its id."""
    env = {"PUBLIC_KEY": "ssh-ed25519 AAAA me", FLOORS: "48,32,100"}
    return lambda: stopped(env=env, entrypoint=["/bin/sh", "-c", "SCRIPTS="], cmd=["/start.sh"])


def test_line_of_an_earlier_start_is_no_proof_that_it_will_end_now(account, created, resume):
    pod = created()
    assert any(ARMED in line for _, line in account.pods[pod].logs["container"])
    account.obeys = set()
    with pytest.raises(UserError, match="its image did not run our start script, so nothing would end it"):
        resume()
    assert account.billed() == []


def test_line_of_an_earlier_start_is_no_proof_where_the_old_log_was_read_in_part(account, created, resume):
    pod, really = created(), account._logs

    def cut(call, pod_id):
        if not account.sent("POST", f"/v2/pods/{pod}/action").count({"action": "start"}):
            return 200, ""
        return really(call, pod_id)

    account._logs, account.obeys = cut, set()
    with pytest.raises(UserError, match="its image did not run our start script"):
        resume()


def test_pod_of_pod_create_is_resumed_without_a_warning(created, resume):
    created()
    assert "warning" not in resume()


def test_pod_set_up_by_hand_is_resumed_and_said_to_end_only_after_fab_install(stopped, resume):
    pod = stopped()
    said = resume()
    assert (
        f"warning: inv pod.create did not make {pod}, so nothing ends it until you run: fab install" in said
    )


def test_pod_that_runs_already_is_left_alone(account, us, stopped, resume):
    pod = stopped()
    us.start(pod)
    assert "is running already" in resume(pod)
    assert account.sent("PATCH", f"/v2/pods/{pod}") == []


def test_failed_pod_that_offers_a_start_is_started(account, stopped, resume):
    pod = stopped()
    account.pods[pod].life = ["ERROR"]
    resume()
    assert account.pods[pod].status == "RUNNING"


def test_dry_run_and_a_no_change_nothing(account, stopped, resume):
    pod = stopped()
    resume(dry_run=True)
    assert "dry run: nothing was changed" in resume.said.err and "$0.40" in resume.said.out
    with pytest.raises(Refused):
        resume(yes=False)
    assert account.sent("PATCH", f"/v2/pods/{pod}") == []


def test_which_of_several_has_to_be_said(stopped, resume):
    first = stopped()
    second = stopped("musicgen-2")
    with pytest.raises(BadInput, match=rf"there are 2 pods: {first} .*, {second} .*; say which with --pod"):
        resume()
    assert "runs again" in resume("musicgen-2")


def test_pod_of_somebody_else_is_not_started(stopped, resume):
    pod = stopped("of-somebody-else")
    with pytest.raises(BadInput, match=r"there is no pod .* of this project"):
        resume(pod)


# --- prices


def test_question_s_worst_case_has_the_disks(stopped, inv):
    stopped(disk=1000, mounts={"persistent": {"size": 460, "path": "/workspace"}})
    asked = inv("pod.resume", "--lifetime", "10h", "--max-price", "0.50", typed="n\n").err
    assert "Start it, for at most $7.00?" in asked  # ten hours at $0.50, and 1460 GB for $0.20 an hour


def test_price_over_the_maximum_is_refused_before_it_starts(account, stopped, resume, monkeypatch):
    pod = stopped()
    monkeypatch.setenv("MUSICGEN_MAX_PRICE", "0.30")
    with pytest.raises(BadInput, match=r"costs \$0.40 an hour, over the maximum of \$0.30"):
        resume()
    assert account.sent("PATCH", f"/v2/pods/{pod}") == []
    assert "runs again" in resume(max_price_usd=0.50)


def test_pod_that_costs_more_than_was_listed_is_stopped_again(account, stopped, resume):
    account.price_factor = 2
    pod = stopped()
    with pytest.raises(UserError, match=r"it costs \$0.80 an hour, over the maximum of \$0.40"):
        resume()
    assert account.pods[pod].status == "EXITED" and "stopping" in resume.said.err


@pytest.mark.parametrize("noted", ["", "9", "nan", "inf", "-1"])
def test_what_its_environment_says_of_a_price_is_no_maximum(account, stopped, resume, noted):
    account.price_factor = 2
    stopped(env={"HOURLY_COST_USD": noted})
    with pytest.raises(UserError, match=r"over the maximum of \$0.40"):
        resume()


@pytest.mark.parametrize(("own", "counted"), [({}, "0.45"), ({"HOURLY_COST_USD": "0.1"}, "0.1")])
def test_reports_count_with_the_price_of_now_or_the_user_s_own(
    account, stopped, resume, monkeypatch, own, counted
):
    pod = stopped()
    account.gpus["NVIDIA A40"]["price"]["secure"] = 0.45
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    resume(max_price_usd=0.50)
    assert account.pods[pod].request["env"]["HOURLY_COST_USD"] == counted


def test_weights_that_forbid_commercial_use_are_refused_before_it_starts(
    stopped, resume, account, monkeypatch
):
    pod = stopped()
    monkeypatch.setenv("MUSICGEN_COMMERCIAL", "1")
    with pytest.raises(BadInput, match="forbids commercial use"):
        resume()
    assert account.pods[pod].status == "EXITED" and account.sent("PATCH", f"/v2/pods/{pod}") == []


def test_training_pod_has_the_maximum_of_its_purpose(stopped, resume):
    stopped("musicgen-train-1", gpu="NVIDIA GeForce RTX 4090")
    assert "runs again, at $0.44 an hour" in resume()


# --- no GPU


def test_full_machine_with_a_volume_is_replaced_on_that_volume(account, us, stopped, resume, request_of):
    mounts = {"network": [{"volumeId": account.add_volume(), "path": "/workspace"}]}
    pod = stopped(mounts=mounts)
    account.host_is_full = True
    asked = []

    def recreate(plan):
        asked.append((plan.pod.id, plan.pod.volume_id))
        return us.create_pod(request_of("musicgen-2", mounts=mounts))

    said = resume(recreate=recreate)
    assert asked == [(pod, "vol0000001")]
    assert [each.name for each in us.pods()] == ["musicgen-2"]
    assert "has taken the place of" in said


@pytest.fixture
def replaced(account, stopped, resume, ssh_key):
    """`inv pod.resume --yes` of a pod with a volume whose machine is full; -> its id."""

    def run(**options):
        pod = stopped(mounts={"network": [{"volumeId": account.add_volume(), "path": "/workspace"}]})
        account.host_is_full = True

        def recreate(plan):
            checks = SshChecks(lambda box: "", lambda box: "no timer runs there")
            json = options.get("json", False)
            return cli_resume.replacement(Settings.load(), plan, checks, yes=True, json=json)

        resume(recreate=recreate, **options)
        return pod

    return run


def test_new_pod_in_place_of_a_full_one_has_the_shortest_lifetime_too(account, us, replaced):
    replaced(lifetime=timedelta(minutes=10))
    (pod,) = us.pods()
    left_s = int(pod.env["MUSICGEN_LIFETIME_END"]) - datetime.now(UTC).timestamp()
    assert left_s == pytest.approx(600, abs=60)


def test_json_of_a_new_pod_in_place_of_a_full_one_is_only_json(us, resume, replaced):
    import json

    old = replaced(json=True)
    (pod,) = us.pods()
    assert pod.id != old and [row["id"] for row in json.loads(resume.said.out)] == [pod.id]


def test_old_pod_stays_where_no_new_one_is_to_be_had(account, us, stopped, resume):
    pod = stopped(mounts={"network": [{"volumeId": account.add_volume(), "path": "/workspace"}]})
    account.host_is_full = True

    def recreate(plan):
        raise UserError("no offer")

    with pytest.raises(UserError, match="no offer"):
        resume(recreate=recreate)
    assert [each.id for each in us.pods()] == [pod]


@pytest.mark.parametrize("started", [False, True])
def test_full_machine_without_a_volume_is_an_error_that_loses_nothing(account, us, stopped, resume, started):
    pod = stopped(mounts={"persistent": {"size": 50, "path": "/workspace"}})
    account.host_is_full, account.pods[pod].has_gpu = not started, False
    with pytest.raises(UserError, match=r"no free GPU .*its disk of 50 GB is on that machine only"):
        resume(
            login=lambda box: "no GPU that works", recreate=lambda plan: pytest.fail("its data would be lost")
        )
    assert [(each.id, each.status) for each in us.pods()] == [(pod, "EXITED")]


def test_login_to_a_gpu_counts_although_runpod_shows_none(account, stopped, resume):
    account.pods[stopped()].has_gpu = False
    assert "runs again" in resume()


# --- whatever goes wrong after the start stops it again


def test_pod_is_stopped_again_although_that_cannot_be_told(account, stopped, resume, monkeypatch):
    def say(line):
        if line.startswith("stopping"):
            raise BrokenPipeError

    def login(box):
        raise RuntimeError("a bug")

    monkeypatch.setattr("ops.ui.say", say)
    keys(account, stopped())
    with pytest.raises(RuntimeError):
        resume(login=login)
    assert account.billed() == []


@pytest.mark.parametrize("fault", ["no answer", UserError(), KeyboardInterrupt(), ZeroDivisionError()])
def test_pod_whose_login_fails_is_stopped_again(account, stopped, resume, fault):
    pod = stopped()

    def login(box):
        if fault == "no answer":
            return fault
        raise fault

    with pytest.raises(UserError if fault == "no answer" else type(fault)):
        resume(login=login)
    assert account.pods[pod].status == "EXITED" and account.billed() == []


@pytest.mark.parametrize(
    ("life", "has_address", "words"),
    [
        (["STARTING"], True, "is still STARTING after 15 min"),
        (["RUNNING"], False, "has had no SSH address for 2 min"),
        (["RUNNING", "EXITED"], True, "RunPod reports EXITED"),
        (["ERROR"], True, "did not start: it is ERROR"),
    ],
)
def test_pod_that_never_becomes_ready_is_stopped_again(account, stopped, resume, life, has_address, words):
    stopped()
    account.life, account.has_address = [*life, life[-1]], has_address
    if life == ["STARTING"]:
        account._step = lambda each: None
    with pytest.raises(UserError, match=words):
        resume()
    assert account.billed() == []


@pytest.mark.parametrize("when", ["before this start", "since this start"])
def test_driver_that_is_too_old_counts_only_since_this_start(account, stopped, resume, when):
    pod = stopped()
    line = "unsatisfied condition: cuda>=12.9"
    if when == "before this start":
        account.pods[pod].log("system", line)
        assert "runs again" in resume()
        return
    enter = account._enter

    def entered(started):
        enter(started)
        started.log("system", line)

    account._enter = entered
    with pytest.raises(UserError, match="its driver is too old for the image's CUDA"):
        resume()
    assert account.billed() == []


def test_pod_that_cannot_be_stopped_again_is_said_to_be_billed(account, stopped, resume):
    pod = stopped()

    def login(box):
        account.deaf = True
        raise UserError("no login")

    with pytest.raises(UserError, match="no login"):
        resume(login=login)
    assert f"STILL BILLING: {pod} is still RUNNING" in resume.said.err


@pytest.mark.parametrize("moment", ["right after the start", "when its state is asked for"])
def test_pod_that_is_still_shown_as_stopped_is_not_believed_to_be(
    account, us, stopped, resume, monkeypatch, moment
):
    pod, act = stopped(), account._action
    account.start_lag = 10

    def interrupted(call, pod_id):
        if call.body == {"action": "start"} and moment == "right after the start":
            signal.raise_signal(signal.SIGINT)
        return act(call, pod_id)

    monkeypatch.setattr(account, "_action", interrupted)
    told = KeyboardInterrupt if moment == "right after the start" else UserError
    with pytest.raises(told):
        resume()
    held = f"stopping as soon as the start of {pod} is done"
    assert (held in resume.said.err) == (moment == "right after the start")
    for _ in range(account.start_lag):
        us.pod(pod)
    assert account.pods[pod].status == "EXITED"


def test_pod_that_starts_late_and_cannot_be_stopped_is_said_to_be_billed(account, stopped, resume):
    pod = stopped()
    account.start_lag = 10
    really = account._action

    def deaf_to_stops(call, pod_id):
        account.deaf = call.body == {"action": "stop"}
        return really(call, pod_id)

    account._action = deaf_to_stops
    with pytest.raises(UserError, match="did not start: it is EXITED"):
        resume()
    assert f"STILL BILLING: {pod} is still RUNNING" in resume.said.err


def test_pod_that_was_seen_to_run_is_believed_to_be_stopped_at_once(account, clock, stopped, resume):
    stopped()

    def login(box):
        clock.slept.clear()
        raise UserError("no login")

    with pytest.raises(UserError, match="no login"):
        resume(login=login)
    assert sum(clock.slept) < 10


@pytest.mark.parametrize(
    ("status", "words", "code"),
    [
        (401, "does not know this API key", 2),
        (402, "no money left", 1),
        (403, "does not allow this API key", 1),
        (422, "does not take the request", 1),
    ],
)
def test_refused_start_is_one_line_and_starts_nothing(account, stopped, resume, status, words, code):
    pod = stopped()
    refused(account, pod, status, "RunPod's words")
    with pytest.raises(UserError, match=words) as caught:
        resume()
    assert caught.value.code == code and "stopping" not in resume.said.err
    assert account.pods[pod].status == "EXITED"


@pytest.mark.parametrize(("state", "is_said"), [("ERROR", True), ("EXITED", False)])
@pytest.mark.parametrize("status", [400, 402])
def test_failed_pod_whose_start_is_refused_is_said_to_be_billed_perhaps(
    account, stopped, resume, state, is_said, status
):
    pod = stopped()
    account.pods[pod].life = [state]
    refused(account, pod, status, "RunPod's words")
    with pytest.raises(UserError):
        resume()
    line = f"{pod} is ERROR, as before, and may be billed until: inv pod.terminate --pod {pod}\n"
    assert (line in resume.said.err) == is_said


def test_start_whose_answer_was_lost_is_a_start(account, stopped, resume):
    pod = stopped()
    account.fault("POST", f"/v2/pods/{pod}/action", 502, acts=True)
    assert "runs again" in resume()
    assert account.sent("POST", f"/v2/pods/{pod}/action").count({"action": "start"}) == 1


def test_pod_that_somebody_else_has_started_meanwhile_is_used(account, stopped, resume):
    pod = stopped()
    account.fault("POST", f"/v2/pods/{pod}/action", 409, acts=True)
    assert "runs again" in resume()


def test_wrong_clock_is_refused_before_anything_is_changed(account, stopped, resume):
    pod = stopped()
    account.clock_ahead = timedelta(hours=1)
    with pytest.raises(BadInput, match="this machine's clock is 60 min behind RunPod's"):
        resume()
    assert account.sent("PATCH", f"/v2/pods/{pod}") == []


def test_lifetime_of_0_is_refused(stopped, resume, monkeypatch):
    stopped()
    monkeypatch.setenv("MUSICGEN_LIFETIME_H", "0")
    with pytest.raises(BadInput, match="correct MUSICGEN_LIFETIME_H"):
        resume()


def test_folder_that_cannot_be_written_pins_nothing_and_stops_it(account, stopped, resume, tmp_path):
    stopped()
    (tmp_path / ".boxes").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*make the folder writable"):
        resume()
    assert account.billed() == []


def test_json_is_only_json(account, stopped, resume):
    import json

    pod = stopped()
    with pytest.raises(BadInput, match="--json cannot ask"):
        resume(json=True, yes=False)
    resume(json=True)
    assert [row["id"] for row in json.loads(resume.said.out)] == [pod]
