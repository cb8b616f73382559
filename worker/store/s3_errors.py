"""What an error of S3 means: one line with a remedy, and whether the same request may succeed later.

    raise explained(error, bucket) from None

One table from S3's error codes and botocore's exceptions to sentences, for stores and for whoever
else calls S3. A code that the table lacks counts by its HTTP status. Needs no boto3 to be imported,
acts on nothing, and repeats neither the request nor the credentials in it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from worker.errors import BadInput, Denied, Unreachable, UserError

_NO_KEYS = "no AWS credentials for bucket {bucket}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in .env"
_BAD_KEYS = "AWS does not know these credentials; correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
EXPIRED = "the AWS credentials have expired; renew them and run the same command again"
NO_PROGRAM = "the credential_process of the AWS profile failed; run its command by hand and correct it"
_MALFORMED = "an AWS setting is malformed; correct AWS_ENDPOINT_URL, AWS_DEFAULT_REGION or AWS_MAX_ATTEMPTS"
_DENIED = "{action} on bucket {bucket} was denied; allow it in the policy of these AWS credentials"
_CLOCK = "this machine's clock is wrong; set it and run it again"
_REGION = "bucket {bucket} is in another region; correct AWS_DEFAULT_REGION"
_BUSY = "S3 is failing or overloaded ({code}); run the same command again later"
_NETWORK = "no answer from S3 for bucket {bucket}; check the network and AWS_ENDPOINT_URL, then run it again"
_CHANGING = "bucket {bucket} is being changed ({code}); run the same command again later"
_BROKEN_REQUEST = "a request to bucket {bucket} broke off ({code}); check the network, then run it again"
BROKEN_ANSWER = "an answer of S3 for bucket {bucket} broke off; check the network, then run it again"

# Failures of S3 that pass, besides every status of 500 and over; first what botocore knows as such.
_PASSING = (
    "PriorRequestNotComplete",
    *("Throttling", "ThrottlingException", "ThrottledException", "RequestThrottledException"),
    *("RequestThrottled", "TooManyRequestsException", "ProvisionedThroughputExceededException"),
    *("TransactionInProgressException", "RequestLimitExceeded", "BandwidthLimitExceeded"),
    *("LimitExceededException", "SlowDown", "EC2ThrottledException"),
    *("TooManyRequests", "SlowDownRead", "SlowDownWrite", "Busy", "ServiceUnavailable", "Unavailable"),
    *("InternalError", "InternalFailure", "InternalServerError", "BadRequest"),
)
_BROKEN_REQUESTS = (
    *("RequestTimeout", "RequestTimeoutException", "IncompleteBody", "BadDigest"),
    *("XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"),
)

# S3's error codes, then the names of botocore's exceptions; a subclass counts as its base.
S3_ERRORS: dict[str, tuple[type[UserError], str]] = {
    "NoSuchBucket": (BadInput, "there is no bucket {bucket}; correct its name or make it first"),
    "AccessDenied": (UserError, _DENIED),
    "AccessDeniedException": (UserError, _DENIED),
    "AllAccessDisabled": (UserError, _DENIED),
    "Forbidden": (UserError, _DENIED),
    "Unauthorized": (UserError, _DENIED),
    "InvalidAccessKeyId": (BadInput, _BAD_KEYS),
    "SignatureDoesNotMatch": (BadInput, _BAD_KEYS),
    "InvalidToken": (BadInput, _BAD_KEYS),
    "InvalidSecurity": (BadInput, _BAD_KEYS),
    "ExpiredToken": (Unreachable, EXPIRED),
    "ExpiredTokenException": (Unreachable, EXPIRED),
    "RequestExpired": (Unreachable, EXPIRED),
    "TokenRefreshRequired": (Unreachable, EXPIRED),
    "RequestTimeTooSkewed": (UserError, _CLOCK),
    "AuthorizationHeaderMalformed": (BadInput, _REGION),
    "IllegalLocationConstraintException": (BadInput, _REGION),
    "PermanentRedirect": (BadInput, _REGION),
    **dict.fromkeys(_PASSING, (Unreachable, _BUSY)),
    **dict.fromkeys(_BROKEN_REQUESTS, (Unreachable, _BROKEN_REQUEST)),
    "OperationAborted": (Unreachable, _CHANGING),
    "ConditionalRequestConflict": (Unreachable, _CHANGING),
    "NoCredentialsError": (BadInput, _NO_KEYS),
    "PartialCredentialsError": (BadInput, _NO_KEYS),
    "ProfileNotFound": (BadInput, "the profile in AWS_PROFILE is not configured; correct or unset it"),
    "CredentialRetrievalError": (Unreachable, EXPIRED),
    "TokenRetrievalError": (Unreachable, EXPIRED),
    "SSOError": (Unreachable, EXPIRED),
    "HTTPClientError": (Unreachable, _NETWORK),
    "ConnectionError": (Unreachable, _NETWORK),
    "IncompleteReadError": (Unreachable, _NETWORK),
    "FlexibleChecksumError": (Unreachable, BROKEN_ANSWER),
    "ResponseParserError": (Unreachable, BROKEN_ANSWER),  # a proxy's page, for example
    "ClientError": (UserError, "S3 refused {action} on bucket {bucket} ({code}); check that bucket"),
    "BotoCoreError": (UserError, "cannot use bucket {bucket} ({code}); check the AWS settings"),
}
# Where the IAM action that a policy must allow is not named like the call.
_IAM_ACTIONS = {"ListObjectsV2": "ListBucket", "HeadObject": "GetObject"}

# What S3 says to a request that is in order, because of who sends it or when.
_DENIALS = (_DENIED, _BAD_KEYS, _CLOCK)


def explained(error: Exception, bucket: str, *, allowed_before: bool = False) -> UserError:
    """Our line for an exception of botocore. Unreachable if the same request may succeed later.

    `allowed_before`: S3 has answered this kind of request well, so that a refusal of these
    credentials is Denied: it may pass.
    """
    kind, text = _row(error)
    if allowed_before and text in _DENIALS:
        kind = Denied
    call = getattr(error, "operation_name", "")
    action = f"s3:{_IAM_ACTIONS.get(call, call)}"
    return kind(text.format(bucket=bucket, action=action, code=code_of(error)))


@contextmanager
def opening() -> Iterator[None]:
    """Raise what botocore does not wrap while it makes a client as BadInput, without any value in it."""
    try:
        yield
    except (OSError, json.JSONDecodeError):  # it runs the program of credential_process
        raise BadInput(NO_PROGRAM) from None
    except ValueError:
        raise BadInput(_MALFORMED) from None


def of_program(error: Exception) -> bool:
    """True if the program of credential_process failed. What it printed may hold a key: repeat it nowhere."""
    return getattr(error, "kwargs", {}).get("provider") == "custom-process"


def code_of(error: Exception) -> str:
    """S3's code of an error, or the name of botocore's exception."""
    response = getattr(error, "response", None)  # a ClientError has one
    code = response["Error"].get("Code", "") if isinstance(response, dict) else type(error).__name__
    return str(code).removeprefix("KMS.")


def _row(error: Exception) -> tuple[type[UserError], str]:
    if of_program(error):
        return Unreachable, NO_PROGRAM
    code = code_of(error)
    if code in S3_ERRORS:
        return S3_ERRORS[code]
    if response := getattr(error, "response", None):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status in (401, 403):
            return UserError, _DENIED
        if status == 301:
            return BadInput, _REGION
        if status in (408, 429) or (status >= 500 and status != 501):  # 501: not implemented
            return Unreachable, _BUSY
        if status != 501 and (
            not code or code.isdigit()
        ):  # what S3 says did not arrive: a 404 may be of object or bucket
            return Unreachable, BROKEN_ANSWER
    return next(S3_ERRORS[cls.__name__] for cls in type(error).__mro__ if cls.__name__ in S3_ERRORS)
