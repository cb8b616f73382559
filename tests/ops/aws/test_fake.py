"""The stand-in for AWS is as strict as AWS where a launch depends on it."""

import boto3
import pytest
from botocore.exceptions import ClientError


@pytest.fixture
def rent(aws):
    """RunInstances with a ClientToken in a zone."""
    ec2 = boto3.client("ec2")
    subnets = {s["AvailabilityZone"]: s["SubnetId"] for s in ec2.describe_subnets()["Subnets"]}

    def run(zone, token="one", **more):
        request = {"ImageId": aws.image(), "InstanceType": "g4dn.xlarge", "MinCount": 1, "MaxCount": 1}
        answer = ec2.run_instances(**request, SubnetId=subnets[zone], ClientToken=token, **more)
        return answer["Instances"][0]["InstanceId"]

    return run


def code(call):
    with pytest.raises(ClientError) as caught:
        call()
    return caught.value.response["Error"]["Code"]


def test_the_same_token_in_the_same_zone_is_the_same_machine(aws, rent):
    assert rent("us-east-1a") == rent("us-east-1a")
    assert len(aws.alive()) == 1


def test_the_same_token_in_another_zone_is_another_machine(aws, rent):
    assert rent("us-east-1a") != rent("us-east-1b")


def test_the_same_token_with_another_request_is_refused(aws, rent):
    rent("us-east-1a")
    again = lambda: rent("us-east-1a", EbsOptimized=True)  # noqa: E731
    assert code(again) == "IdempotentParameterMismatch"


def test_a_one_time_spot_machine_cannot_be_stopped(aws, rent):
    spot = {"MarketType": "spot", "SpotOptions": {"SpotInstanceType": "one-time"}}
    machine = rent("us-east-1a", InstanceMarketOptions=spot)
    ec2 = boto3.client("ec2")
    assert code(lambda: ec2.stop_instances(InstanceIds=[machine])) == "UnsupportedOperation"


def test_a_persistent_request_starts_another_machine_unless_it_is_cancelled_first(aws, rent):
    spot = {"MarketType": "spot", "SpotOptions": {"SpotInstanceType": "persistent"}}
    first = rent("us-east-1a", InstanceMarketOptions=spot)
    ec2 = boto3.client("ec2")
    ec2.terminate_instances(InstanceIds=[first])
    (second,) = aws.alive()
    request = next(each.id for each in aws.spot_requests.values() if each.instance == second)
    ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=[request])
    ec2.terminate_instances(InstanceIds=[second])
    assert aws.alive() == []


def test_a_bid_under_the_price_and_a_machine_over_the_quota_are_refused(aws, rent):
    def bid(usd):
        return {"MarketType": "spot", "SpotOptions": {"MaxPrice": usd}}

    aws.set_price("g4dn.xlarge", "us-east-1a", 0.2)
    assert code(lambda: rent("us-east-1a", InstanceMarketOptions=bid("0.1"))) == "SpotMaxPriceTooLow"
    aws.quotas["ec2", "L-3819A6DF"] = 4.0
    rent("us-east-1a", InstanceMarketOptions=bid("0.3"))
    over = lambda: rent("us-east-1a", "two", InstanceMarketOptions=bid("0.3"))  # noqa: E731
    assert code(over) == "MaxSpotInstanceCountExceeded"
