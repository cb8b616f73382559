"""What an error of S3 means, and whether it is waited out."""

import pytest
from botocore import exceptions
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError
from botocore.retries.standard import ThrottledRetryableChecker, TransientRetryableChecker

from worker.errors import BadInput, Denied, Unreachable, UserError
from worker.store.s3_errors import explained


def refusal(code, status=400, operation="PutObject", message="planted-secret"):
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, operation)


def kind_of(code, status=400, **options):
    return type(explained(refusal(code, status), "songs", **options))


def test_what_botocore_takes_for_passing_is_waited_out():
    codes = {
        *TransientRetryableChecker._TRANSIENT_ERROR_CODES,
        *ThrottledRetryableChecker._THROTTLED_ERROR_CODES,
    }
    assert len(codes) > 10
    assert {code: kind_of(code) for code in codes} == dict.fromkeys(codes, Unreachable)


def test_what_passes_by_itself_is_waited_out():
    passing = [
        *[(400, code) for code in ("RequestTimeout", "BadRequest", "IncompleteBody", "BadDigest")],
        *[(400, code) for code in ("ExpiredToken", "KMS.ThrottlingException")],
        *[(409, code) for code in ("OperationAborted", "ConditionalRequestConflict")],
        *[(500, "InternalError"), (503, "ServiceUnavailable"), (503, "SlowDownWrite"), (429, "")],
        *[(500, "500"), (502, "502"), (503, "XMinioServerNotInitialized"), (504, ""), (507, "XStorageFull")],
        *[(429, "Unheard"), (408, "Unheard"), (404, "404"), (400, "400"), (400, "")],
    ]
    assert [one for one in passing if kind_of(one[1], one[0]) is not Unreachable] == []


def test_what_stays_is_not_waited_out():
    lasting = [
        *[(400, "InvalidRequest"), (405, "MethodNotAllowed"), (501, "NotImplemented"), (501, "501")],
        *[(403, "AccessDenied"), (403, "403"), (401, "Unauthorized"), (404, "NoSuchBucket")],
        *[(301, "301"), (301, "PermanentRedirect"), (403, "RequestTimeTooSkewed"), (403, "Unheard")],
    ]
    assert [one for one in lasting if issubclass(kind_of(one[1], one[0]), Unreachable)] == []


def test_refusal_of_what_was_allowed_before_may_pass():
    codes = ["AccessDenied", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "InvalidAccessKeyId", "Unheard"]
    assert {kind_of(code, 403, allowed_before=True) for code in codes} == {Denied}
    assert Denied not in {kind_of(code, 403) for code in codes}
    assert Denied.code == 1


def test_what_was_allowed_before_does_not_excuse_other_errors():
    assert kind_of("NoSuchBucket", 404, allowed_before=True) is BadInput
    assert kind_of("InvalidRequest", 400, allowed_before=True) is UserError
    assert kind_of("SlowDown", 503, allowed_before=True) is Unreachable


def test_every_exception_of_botocore_is_one_line_of_two_parts():
    classes = [
        one
        for one in vars(exceptions).values()
        if isinstance(one, type) and issubclass(one, exceptions.BotoCoreError)
    ]
    lines = [str(explained(one.__new__(one), "songs")) for one in classes]
    lines += [str(explained(ResponseParserError("planted-secret"), "songs"))]
    lines += [str(explained(refusal(code, 403), "songs")) for code in ("AccessDenied", "Unheard", "")]
    assert len(lines) > 50
    assert [one for one in lines if "; " not in one or "\n" in one or "planted" in one or "{" in one] == []


def test_broken_connections_and_answers_are_waited_out():
    broken = (
        *(exceptions.EndpointConnectionError, exceptions.ReadTimeoutError, exceptions.ConnectTimeoutError),
        *(exceptions.ConnectionClosedError, exceptions.ResponseStreamingError, exceptions.SSLError),
        *(exceptions.IncompleteReadError, exceptions.FlexibleChecksumError, ResponseParserError),
    )
    assert {type(explained(one.__new__(one), "songs")) for one in broken} == {Unreachable}


@pytest.mark.parametrize(
    ("operation", "action"),
    [("ListObjectsV2", "s3:ListBucket"), ("HeadObject", "s3:GetObject"), ("PutObject", "s3:PutObject")],
)
def test_denial_names_what_a_policy_must_allow(operation, action):
    assert str(explained(refusal("AccessDenied", 403, operation), "songs")).startswith(f"{action} on bucket")
