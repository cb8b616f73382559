"""An e-mail when the account spends much: the last safeguard, should every other one fail.

One monthly budget of the whole account (a filter by tag would miss what has no tag). It warns when 80 % are
spent and when 100 % are forecast. It stops nothing: AWS cannot stop one-time spot machines.
"""

from typing import Any

from ops.aws.account.step import ABSENT, Step, step
from ops.aws.session import Aws
from worker.errors import BadInput, UserError

NAME = "musicgen-budget"
REGION = "us-east-1"  # the only one with Budgets
ALERTS = (("ACTUAL", 80.0), ("FORECASTED", 100.0))

_ABSENT = ("NotFoundException",)


def budget_step(aws: Aws) -> Step:
    """What the budget and its alerts lack."""
    email, limit_usd = _wanted(aws)
    thing = f"budget {NAME}"
    if not email:
        return Step(thing, "not asked for", "no alert: set MUSICGEN_BUDGET_EMAIL")
    try:
        return _email_step(aws, thing, email, limit_usd)
    except UserError as error:  # an alert is not worth a setup
        return Step(thing, f"not known: {error}", f"left as it is; an alert to {email}")


def _email_step(aws: Aws, thing: str, email: str, limit_usd: float) -> Step:
    if aws.caller.partition != "aws":
        return Step(thing, f"not in {aws.caller.partition}", "set an alert in the console of your account")
    wanted = f"${limit_usd:g} a month, e-mail to {email}"
    found = _budget(aws)
    if not found:
        return step(thing, ABSENT, wanted, lambda: ensure_budget(aws))
    drift = []
    if float(found["BudgetLimit"]["Amount"]) != limit_usd:
        drift.append(f"${float(found['BudgetLimit']['Amount']):g} a month")
    if missing := _missing_alerts(aws, email):
        drift.append(f"{len(missing)} of {len(ALERTS)} alerts not to {email}")
    return step(thing, "; ".join(drift), wanted, lambda: ensure_budget(aws))


def ensure_budget(aws: Aws) -> None:
    """Create the budget, or change what differs. Running it again changes nothing."""
    email, limit_usd = _wanted(aws)
    account = aws.caller.account
    budget = {
        "BudgetName": NAME,
        "BudgetLimit": {"Amount": f"{limit_usd:.2f}", "Unit": "USD"},
        "TimeUnit": "MONTHLY",
        "BudgetType": "COST",
    }
    found = _budget(aws)
    if not found:
        aws.act(
            "budgets",
            "create_budget",
            region=REGION,
            AccountId=account,
            Budget=budget,
            NotificationsWithSubscribers=[
                {"Notification": _alert(*alert), "Subscribers": _subscribers(email)} for alert in ALERTS
            ],
        )
        return
    if float(found["BudgetLimit"]["Amount"]) != limit_usd:
        aws.act("budgets", "update_budget", region=REGION, AccountId=account, NewBudget=budget)
    for alert, there in _missing_alerts(aws, email):
        place: dict[str, Any] = {"AccountId": account, "BudgetName": NAME, "Notification": alert}
        if there:  # an alert has at least one subscriber, so both are deleted
            aws.act("budgets", "delete_notification", region=REGION, **place)
        aws.act("budgets", "create_notification", region=REGION, Subscribers=_subscribers(email), **place)


def budget_removal(aws: Aws) -> Step | None:
    """The removal of the budget, which setup knows by its name."""
    if aws.caller.partition != "aws":
        return None
    try:
        if not _budget(aws):
            return None
    except UserError as error:
        return Step(f"budget {NAME}", f"not known: {error}", "left as it is")
    return Step(
        f"budget {NAME}",
        "there",
        ABSENT,
        "delete",
        lambda: aws.act(
            "budgets", "delete_budget", region=REGION, AccountId=aws.caller.account, BudgetName=NAME
        ),
    )


def _wanted(aws: Aws) -> tuple[str, float]:
    email, limit_usd = aws.settings.budget_email or "", round(aws.settings.budget_usd, 2)
    name, _, host = email.partition("@")
    if email and not (name and "." in host and not set(email) & set(" ,;<>")):
        raise BadInput(f"MUSICGEN_BUDGET_EMAIL={email} is not an e-mail address; correct it")
    if email and limit_usd <= 0:
        raise BadInput("MUSICGEN_BUDGET_USD must be over 0; correct it")
    return email, limit_usd


def _budget(aws: Aws) -> dict[str, Any] | None:
    found = aws.ask(
        "budgets",
        "describe_budget",
        region=REGION,
        absent=_ABSENT,
        AccountId=aws.caller.account,
        BudgetName=NAME,
    )
    return dict(found["Budget"]) if found and "Budget" in found else None


def _missing_alerts(aws: Aws, email: str) -> list[tuple[dict[str, Any], bool]]:
    """The alerts that do not reach this address, and whether each exists for another one."""
    place = {"AccountId": aws.caller.account, "BudgetName": NAME}
    there = aws.ask("budgets", "describe_notifications_for_budget", region=REGION, **place)
    kinds = {(n["NotificationType"], float(n["Threshold"])) for n in there.get("Notifications", [])}
    missing = []
    for kind, threshold in ALERTS:
        alert = _alert(kind, threshold)
        if (kind, threshold) not in kinds:
            missing.append((alert, False))
            continue
        listed = aws.ask(
            "budgets",
            "describe_subscribers_for_notification",
            region=REGION,
            Notification=alert,
            **place,
        )
        if email not in [subscriber["Address"] for subscriber in listed.get("Subscribers", [])]:
            missing.append((alert, True))
    return missing


def _alert(kind: str, threshold: float) -> dict[str, Any]:
    return {
        "NotificationType": kind,
        "ComparisonOperator": "GREATER_THAN",
        "Threshold": threshold,
        "ThresholdType": "PERCENTAGE",
    }


def _subscribers(email: str) -> list[dict[str, str]]:
    return [{"SubscriptionType": "EMAIL", "Address": email}]
