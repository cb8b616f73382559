"""Build the worker's machine image: AWS's own for GPUs, plus packages, weights and a test on the GPU.

    plan = plan_image(aws, root, now)                   # asks only; plan.rows() is what the user sees
    image = ImageBuild(aws, plan, tell).carry_out()     # rents the build box, makes the image, ends the box

The box does everything by itself (remote/image.sh) and writes its result to the bucket, so no SSH is
needed. It is on-demand, as a one-time spot machine cannot be stopped, and stops itself after
BUILD_LIMIT_MIN at the latest. Whatever happens here, a Ctrl-C included, the box is terminated and an image
that did not become available is removed. Should this machine be off by then, an EventBridge schedule ends
the box: without one there is no build.
"""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from ops import interrupts
from ops.aws import machines, rent, schedule
from ops.aws.account import quota
from ops.aws.errors import errors
from ops.aws.images import registry
from ops.aws.images.plan import BUILD_LIMIT_MIN, ImagePlan
from ops.aws.images.registry import Image
from ops.aws.rent import Rental
from ops.aws.session import Aws
from worker import timestamps
from worker.errors import Interrupted, UserError

BOX_LIMIT_S = (BUILD_LIMIT_MIN + 10) * 60
IMAGE_LIMIT_S = 60 * 60  # 100 GB take half an hour
POLL_S = 15.0
TAIL_LINES = 15

LEAST_LOOKS = 3

Tell = Callable[[str], None]
Pause = Callable[[float], None]


class ImageBuild:
    """One build, carried out once. `pause` waits between two looks at what AWS works on."""

    def __init__(self, aws: Aws, plan: ImagePlan, tell: Tell, pause: Pause = time.sleep) -> None:
        self._aws, self._plan, self._tell, self._pause = aws, plan, tell, pause
        self._rental = Rental(aws, plan.machine.run_id, tell)

    def dry_run(self) -> None:
        """Ask EC2 whether it would accept the request, without renting anything. Raises UserError if not."""
        self._refuse_over_quota()
        with errors(self._aws.region):
            rent.dry_run(self._aws, self._plan.machine)

    def carry_out(self) -> Image:
        """Rent, build, make the image, record it; always end the box."""
        self._refuse_second_build()
        self._refuse_over_quota()
        self._upload_code()
        with interrupts.terminate_as_interrupt():
            try:
                with errors(self._aws.region):
                    box = self._rental.rent(self._plan.machine)
                self._arm_schedule(box)
                self._keep_disk(box)
                self._tell(f"build box {box}: about 20 minutes; Ctrl-C ends it")
                self._await_stopped(box)
                self._check_result()
                return self._make_image(box)
            except KeyboardInterrupt:
                raise Interrupted("the build was stopped; run `inv image` again to start anew") from None
            finally:
                self._rental.end()

    def _refuse_second_build(self) -> None:
        found = machines.in_region(self._aws, self._aws.region, Name=machines.BUILD_BOX)
        if found:
            boxes = ", ".join(machine.id for machine in found)
            raise UserError(f"there is a build box already ({boxes}); wait, or run: inv kill-all")

    def _refuse_over_quota(self) -> None:
        kind = self._plan.machine.instance_type
        if quota.is_counted(kind):
            needed = quota.vcpus(self._aws, [kind]).get(kind, 0)
            quota.refuse_if_short(self._aws, quota.ON_DEMAND, needed, self._tell)

    def _upload_code(self) -> None:
        plan = self._plan
        target = {"Bucket": plan.bucket, "Key": plan.code_key}
        if not self._aws.ask("s3", "head_object", absent=("404", "NoSuchKey"), **target):
            self._aws.act("s3", "put_object", Body=plan.release.archive, **target)

    def _arm_schedule(self, box: str) -> None:
        """The box will only stop itself, and the disk of a stopped box is billed for ever.

        Raises UserError if it cannot be armed: there is no other way to end a box whose builder was killed.
        """
        latest = datetime.now(UTC) + timedelta(seconds=BOX_LIMIT_S + IMAGE_LIMIT_S)
        for attempt in range(LEAST_LOOKS):
            if attempt:  # EventBridge sees a new role some seconds after IAM has made it
                self._pause(POLL_S)
            try:
                schedule.arm(self._aws, box, latest)
            except UserError as error:
                refused = error
            else:
                return
        raise UserError(
            f"no EventBridge schedule would end the build box if this machine were switched off ({refused}), "
            "so it was ended now; run inv setup, then inv image again"
        )

    def _keep_disk(self, box: str) -> None:
        """Until now its shutdown terminates it: a builder killed before the schedule leaves nothing.

        Only for a box that a schedule ends.
        """
        behaviour = {"Value": "stop"}  # an image is made of a stopped machine
        request: dict[str, Any] = {"InstanceId": box, "InstanceInitiatedShutdownBehavior": behaviour}
        unseen = machines.UNSEEN
        if not rent.seen(lambda: self._aws.act("ec2", "modify_instance_attribute", absent=unseen, **request)):
            raise UserError(f"EC2 does not show {box} after it was rented; it was ended, run it again")

    def _await_stopped(self, box: str) -> None:
        started_s, said = time.monotonic(), ""
        while time.monotonic() - started_s < BOX_LIMIT_S:
            described = machines.described(self._aws, box)
            state = described["State"]["Name"] if described else "pending"
            if state == "stopped":
                return
            if state in ("shutting-down", "terminated"):
                raise UserError(f"the build box {box} was terminated by somebody else; run it again")
            if state != said:
                self._tell(
                    f"build box is {state}; its log will be s3://{self._plan.bucket}/{self._plan.log_key}"
                )
                said = state
            self._pause(POLL_S)
        raise UserError(f"the build box did not finish in {BUILD_LIMIT_MIN} min; run it again")

    def _check_result(self) -> None:
        try:
            result = json.loads(self._object(self._plan.result_key) or "")
            ok, step, code = result["ok"], result["step"], result["exit_code"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                "the build box stopped without a result (its time was over, or it could not reach the "
                "bucket); check that the instance profile is the one of `inv setup` and run it again"
            ) from None
        if ok:
            driver, torch = result.get("driver") or "none", result.get("torch") or "none"
            self._tell(f"built and tested: driver {driver}, torch {torch}")
            return
        for line in (self._object(self._plan.log_key) or "").splitlines()[-TAIL_LINES:]:
            self._tell(f"  {line}")
        raise UserError(
            f"the build failed at `{step}` (exit {code}); "
            f"read s3://{self._plan.bucket}/{self._plan.log_key} and run it again"
        )

    def _object(self, key: str) -> str | None:
        """A text that the box wrote. One that breaks off is read again: botocore repeats only the request."""
        target = {"Bucket": self._plan.bucket, "Key": key}
        looks = 1
        while True:
            try:
                with errors(self._aws.region):
                    answer = self._aws.ask("s3", "get_object", absent=("NoSuchKey", "404"), **target)
                    return answer["Body"].read().decode("utf-8", "replace") if answer else None
            except UserError:
                if looks == LEAST_LOOKS:
                    raise
            looks += 1
            self._pause(POLL_S)

    def _make_image(self, box: str) -> Image:
        plan, aws = self._plan, self._aws
        try:
            with interrupts.held(self._tell, "EC2's answer"):
                made = aws.act(
                    "ec2",
                    "create_image",
                    InstanceId=box,
                    Name=plan.name,
                    Description=f"MusicGen worker, {plan.model}, commit {plan.commit}",
                    TagSpecifications=[
                        {"ResourceType": kind, "Tags": plan.tags} for kind in ("image", "snapshot")
                    ],
                )
                ami = str(made["ImageId"])
            self._await_image(ami)
        except BaseException:
            with interrupts.held(self._tell, "removing the image"):
                self._remove_unfinished()
            raise
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
        registry.record(finished)
        return finished

    def _await_image(self, ami: str) -> None:
        self._tell(f"image {ami}: AWS copies the disk, some 10 to 30 minutes")
        started_s = time.monotonic()
        while time.monotonic() - started_s < IMAGE_LIMIT_S:
            answer = self._aws.ask(
                "ec2", "describe_images", absent=("InvalidAMIID.NotFound",), ImageIds=[ami]
            )
            described: dict[str, Any] = answer["Images"][0] if answer and answer["Images"] else {}
            if described.get("State") == "available":
                return
            if described.get("State") in ("failed", "error", "invalid"):
                reason = described.get("StateReason", {}).get("Message", "no reason given")
                raise UserError(f"AWS could not make the image ({reason}); run it again")
            self._pause(POLL_S)
        raise UserError(f"image {ami} was not available after {IMAGE_LIMIT_S // 60} min; run it again")

    def _remove_unfinished(self) -> None:
        """The image and its snapshots, by this build's tag: the id may not have arrived, or show late."""
        mine = [{"Name": "tag:RunId", "Values": [self._plan.machine.run_id]}]
        for look in range(LEAST_LOOKS):
            if look:
                self._pause(POLL_S)
            for image in self._aws.ask("ec2", "describe_images", Owners=["self"], Filters=mine)["Images"]:
                registry.deregister(self._aws, image["ImageId"])
            found = self._aws.ask("ec2", "describe_snapshots", OwnerIds=["self"], Filters=mine)["Snapshots"]
            for snapshot in found:
                registry.delete_snapshot(self._aws, snapshot["SnapshotId"])
