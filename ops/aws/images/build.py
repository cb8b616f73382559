"""Build the worker's machine image: AWS's own for GPUs, plus packages, weights and a test on the GPU.

    plan = blueprint.plan_build(aws, root, now)    # asks only; plan.rows() are for the user's eyes
    image = Build(aws, plan, say).carry_out()      # rents the build box, makes the image, ends the build box

The box does all by itself (remote/image.sh) and answers in the bucket, so neither SSH nor this machine's
patience is needed. It is on-demand, as a one-time spot machine cannot be stopped, and stops itself after
BUILD_LIMIT_MIN at the latest. Whatever happens here, a Ctrl-C too, the box is terminated and an image that
did not get ready is taken back. Should this machine be gone by then, an alarm clock in AWS ends the box.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from ops import interrupts
from ops.aws import schedule
from ops.aws.errors import AGAIN, code_of, explained
from ops.aws.images import registry as image
from ops.aws.images.plan import BOX_NAME, BUILD_LIMIT_MIN, BuildPlan
from ops.aws.images.registry import Image
from ops.aws.session import PROJECT, Aws, tag_list
from worker import timestamps
from worker.errors import Interrupted, UserError

IMAGE_LIMIT_S = 60 * 60  # 100 GB take half an hour
FRESH_PROFILE_S = 150
POLL_S = 15.0
# EC2 may not show or know a new box everywhere at once.
UNSEEN_LOOKS, UNSEEN_LOOK_S = 6, 3.0
TAIL_LINES = 15

Say = Callable[[str], None]
Pause = Callable[[float], None]


class Build:
    """One build, carried out once."""

    def __init__(
        self,
        aws: Aws,
        plan: BuildPlan,
        say: Say,
        pause: Pause = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._aws, self._plan, self._say = aws, plan, say
        self._pause, self._clock = pause, clock
        self._box = ""
        self._unheard = False  # an answer is out, so a box may run whose id was never heard

    def rehearse(self) -> None:
        """Ask EC2 whether it would take the request, without renting anything. Raises UserError if not."""
        request = self._plan.request | {"UserData": self._plan.user_data, "DryRun": True}
        with self._aws.audit.action("ec2.run_instances", request, dry_run=True) as done:
            try:
                self._aws.client("ec2").run_instances(**request)
            except ClientError as error:
                if code_of(error) != "DryRunOperation":
                    raise explained(error, self._aws.region) from None
            done("would succeed")

    def carry_out(self) -> Image:
        """Rent, build, make the image, record it; always end the box."""
        self._refuse_second_build()
        self._upload_code()
        with interrupts.terminate_as_interrupt():
            try:
                box = self._rent()
                self._arm_schedule(box)
                self._say(f"build box {box}: about 20 minutes; Ctrl-C ends it")
                self._await_stopped(box)
                self._check_result()
                return self._make_image(box)
            except KeyboardInterrupt:
                raise Interrupted("the build was given up; run `inv image` again to start anew") from None
            finally:
                with interrupts.held(self._say, "ending the build box"):
                    self._end()

    def _refuse_second_build(self) -> None:
        alive = self._boxes()
        if alive:
            raise UserError(f"there is a build box already ({', '.join(alive)}); wait, or run: inv kill-all")

    def _boxes(self) -> list[str]:
        filters = [
            {"Name": "tag:Project", "Values": [PROJECT]},
            {"Name": "tag:Name", "Values": [BOX_NAME]},
            {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]},
        ]
        reservations = self._aws.pages("ec2", "describe_instances", "Reservations", Filters=filters)
        return [box["InstanceId"] for reservation in reservations for box in reservation["Instances"]]

    def _upload_code(self) -> None:
        plan = self._plan
        place = {"Bucket": plan.bucket, "Key": f"{plan.prefix}{plan.release.key}"}
        if not self._aws.ask("s3", "head_object", absent=("404", "NoSuchKey"), **place):
            self._aws.act("s3", "put_object", Body=plan.release.archive, **place)

    def _rent(self) -> str:
        request = self._plan.request | {"UserData": self._plan.user_data}
        started_s = self._clock()
        while True:
            with self._aws.audit.action("ec2.run_instances", request) as done:
                try:
                    with interrupts.held(self._say, "EC2's answer"):
                        self._unheard = True
                        answer = self._aws.client("ec2", attempts=2).run_instances(**request)
                        # Kept at once: a Ctrl-C that was held is raised at the end of this block.
                        self._box = box = str(answer["Instances"][0]["InstanceId"])
                        self._unheard = False
                        done({"InstanceId": box}, instance_id=box, price_usd=self._plan.hourly_usd)
                    return box
                except (ClientError, BotoCoreError) as error:
                    # Of two attempts the first may have rented it, unheard, and the second been refused.
                    self._unheard = isinstance(error, BotoCoreError) or code_of(error) in AGAIN
                    fresh = code_of(error) == "InvalidIamInstanceProfile"
                    if not fresh or self._clock() - started_s > FRESH_PROFILE_S:
                        raise explained(error, self._aws.region) from None
                    done(f"refused: {code_of(error)}")
            self._say("EC2 does not see the new instance profile yet; trying again")
            self._pause(POLL_S)

    def _arm_schedule(self, box: str) -> None:
        """The box only stops by itself, and a stopped one's disk is billed for ever."""
        latest = datetime.now(UTC) + timedelta(minutes=BUILD_LIMIT_MIN + 10, seconds=IMAGE_LIMIT_S)
        try:
            schedule.arm(self._aws, box, latest)
        except UserError as error:
            self._say(
                f"warning: no alarm clock outside of the build box ({error}); end it yourself "
                "(inv kill-all) should this machine be switched off meanwhile"
            )

    def _await_stopped(self, box: str) -> None:
        started_s, said = self._clock(), ""
        while self._clock() - started_s < (BUILD_LIMIT_MIN + 10) * 60:
            state = self._state(box)
            if state == "stopped":
                return
            if state in ("shutting-down", "terminated"):
                raise UserError(f"the build box {box} was terminated by somebody else; run it again")
            if state != said:
                self._say(
                    f"build box is {state}; its log will be s3://{self._plan.bucket}/{self._plan.log_key}"
                )
                said = state
            self._pause(POLL_S)
        raise UserError(f"the build box did not finish in {BUILD_LIMIT_MIN} min; run it again")

    def _state(self, box: str) -> str:
        # A box of a moment ago may not be seen yet.
        answer = self._aws.ask(
            "ec2", "describe_instances", absent=("InvalidInstanceID.NotFound",), InstanceIds=[box]
        )
        found = [i for r in answer["Reservations"] for i in r["Instances"]] if answer else []
        return str(found[0]["State"]["Name"]) if found else "pending"

    def _check_result(self) -> None:
        try:
            result = json.loads(self._object(self._plan.result_key) or "")
            ok, step, code = result["ok"], result["step"], result["exit_code"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                "the build box stopped without an answer (its time was over, or it could not reach the "
                "bucket); check that the instance profile is the one of `inv setup` and run it again"
            ) from None
        if ok:
            driver, torch = result.get("driver") or "none", result.get("torch") or "none"
            self._say(f"built and tested: driver {driver}, torch {torch}")
            return
        for line in (self._object(self._plan.log_key) or "").splitlines()[-TAIL_LINES:]:
            self._say(f"  {line}")
        raise UserError(
            f"the build failed at `{step}` (exit {code}); "
            f"read s3://{self._plan.bucket}/{self._plan.log_key} and run it again"
        )

    def _object(self, key: str) -> str | None:
        place = {"Bucket": self._plan.bucket, "Key": key}
        answer = self._aws.ask("s3", "get_object", absent=("NoSuchKey", "404"), **place)
        return answer["Body"].read().decode("utf-8", "replace") if answer else None

    def _make_image(self, box: str) -> Image:
        plan, aws = self._plan, self._aws
        tags = tag_list(
            Name=plan.name,
            Commit=plan.commit,
            Requirements=plan.requirements,
            Model=plan.model,
            Base=plan.base_ami,
        )
        made = aws.act(
            "ec2",
            "create_image",
            InstanceId=box,
            Name=plan.name,
            Description=f"MusicGen worker, {plan.model}, commit {plan.commit}",
            TagSpecifications=[{"ResourceType": "image", "Tags": tags}],
        )
        ami = str(made["ImageId"])
        ready = False
        try:
            described = self._await_image(ami)
            for snapshot in image.snapshots_of(described):
                aws.act("ec2", "create_tags", Resources=[snapshot], Tags=tags)
            ready = True
        finally:
            if not ready:
                self._take_back(ami)
        finished = Image(
            name=plan.name,
            region=aws.region,
            ami=ami,
            made_at=timestamps.now(),
            commit=plan.commit,
            requirements=plan.requirements,
            model=plan.model,
            base=plan.base_ami,
        )
        image.record(finished)
        return finished

    def _await_image(self, ami: str) -> dict[str, Any]:
        self._say(f"image {ami}: AWS copies the disk, some 10 to 30 minutes")
        started_s = self._clock()
        while self._clock() - started_s < IMAGE_LIMIT_S:
            answer = self._aws.ask(
                "ec2", "describe_images", absent=("InvalidAMIID.NotFound",), ImageIds=[ami]
            )
            described: dict[str, Any] = answer["Images"][0] if answer and answer["Images"] else {}
            if described.get("State") == "available":
                return described
            if described.get("State") in ("failed", "error", "invalid"):
                reason = described.get("StateReason", {}).get("Message", "no reason given")
                raise UserError(f"AWS could not make the image ({reason}); run it again")
            self._pause(POLL_S)
        raise UserError(f"image {ami} was not ready after {IMAGE_LIMIT_S // 60} min; run it again")

    def _take_back(self, ami: str) -> None:
        answer = self._aws.ask("ec2", "describe_images", absent=("InvalidAMIID.NotFound",), ImageIds=[ami])
        if not answer or not answer["Images"]:
            return
        self._aws.end("ec2", "deregister_image", ImageId=ami)
        for snapshot in image.snapshots_of(answer["Images"][0]):
            self._aws.end("ec2", "delete_snapshot", SnapshotId=snapshot)

    def _end(self) -> None:
        """Terminate the box; also one whose id was lost on the way, which its tag tells."""
        if self._box:  # first, whatever else may fail
            self._terminate(self._box)
        n_looks = UNSEEN_LOOKS if self._unheard else 1
        for look in range(n_looks):
            if look:
                self._pause(UNSEEN_LOOK_S)
            try:
                others = [box for box in self._boxes() if box != self._box]
            except UserError:
                if look + 1 < n_looks:
                    continue
                if self._unheard:
                    self._say("WARNING: a build box may be running; run: inv kill-all")
                raise
            for other in others:
                self._terminate(other)

    def _terminate(self, box: str) -> None:
        try:
            for look in range(UNSEEN_LOOKS):
                if look:
                    self._pause(UNSEEN_LOOK_S)
                if self._taken(box):
                    break
            else:
                raise UserError(
                    f"EC2 does not know the build box {box} that it has rented; run: inv kill-all"
                )
        except UserError:
            self._say(f"WARNING: build box {box} may still be running; run: inv kill-all")
            raise
        self._say(f"build box {box} is terminated")
        with suppress(UserError):  # it finds nothing to end, and is then gone
            schedule.remove(self._aws, schedule.name_for(box))

    def _taken(self, box: str) -> bool:
        """True if EC2 has taken the order to end it."""
        ids, unseen = [box], ("InvalidInstanceID.NotFound",)
        with self._aws.audit.action("ec2.terminate_instances", {"InstanceIds": ids}, ends=True) as done:
            answer = self._aws.ask("ec2", "terminate_instances", absent=unseen, InstanceIds=ids)
            done(answer, instance_id=box)
        return answer is not None
