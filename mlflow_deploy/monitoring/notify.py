"""Sends a message of the monitors by webhook, Slack, mail or command; its errors tell no address or secret."""

from __future__ import annotations

import os
import shlex
import smtplib
import ssl
import subprocess
from datetime import datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import msgspec

from mlflow_deploy.config_monitor import AlertSpec
from mlflow_deploy.monitoring.alert_state import Channel, Message, Notice
from mlflow_deploy.monitoring.webhook_signature import ID, SIGNATURE, TIMESTAMP, sign

_TIMEOUT_SECONDS = 10.0
_COMMAND_SECONDS = 60.0
_TITLES = {"warning": "WARNING", "alert": "ALERT", "ok": "OK"}


class NotDeliveredError(Exception):
    """A message did not get through; the text holds no secret."""


def channels(alert: AlertSpec) -> tuple[Channel, ...]:
    """The channels that are set up."""
    found: dict[Channel, bool] = {
        "webhook": bool(alert.webhook),
        "slack": bool(alert.slack),
        "email": bool(alert.email),
        "command": bool(alert.command),
    }
    return tuple(channel for channel, there in found.items() if there)


def send(channel: Channel, message: Message, alert: AlertSpec, *, now: float) -> None:
    """Deliver a message over one channel.

    Args:
        now: time of the signature, in seconds since the epoch.

    Raises:
        NotDeliveredError: it did not arrive, or nobody said that it did.
    """
    if channel not in channels(alert):
        raise NotDeliveredError(f"the channel {channel} is not set up any more")
    if channel == "webhook":
        body = msgspec.json.encode(document(message))
        secret = _secret(alert.webhook_secret) if alert.webhook_secret else ""
        _post(_secret(alert.webhook), body, signed(body, message.id, secret, now))
    elif channel == "slack":
        _post(_secret(alert.slack), msgspec.json.encode({"text": _escaped(text(message))}), {})
    elif channel == "email":
        _mail(message, alert)
    else:
        _run(alert.command, msgspec.json.encode(document(message)))


def document(message: Message) -> dict[str, Any]:
    """The message as receivers of webhooks and commands get it."""
    return {
        "version": 1,
        "status": "firing" if any(each.status == "firing" for each in message.notices) else "recovered",
        "text": text(message),
        **msgspec.to_builtins(message),
    }


def signed(body: bytes, identity: str, secret: str, now: float) -> dict[str, str]:
    """Headers with the message's id, the time and, with a secret, the signature over id, time and body.

    They are those of MLflow's own webhooks, so that one check of signatures works for both. A receiver refuses
    an old time, so that a recorded message is worth nothing later.
    """
    moment = str(int(now))
    headers = {ID: identity, TIMESTAMP: moment}
    if secret:
        headers[SIGNATURE] = sign(secret, identity, moment, body)
    return headers


def text(message: Message) -> str:
    """The message for people, a paragraph per notice."""
    return "\n\n".join(_paragraph(message.deployment, notice) for notice in message.notices)


def subject(message: Message) -> str:
    """One line on the message."""
    gravest = max(message.notices, key=lambda each: ("ok", "warning", "alert").index(each.level))
    monitors = ", ".join(sorted({each.monitor for each in message.notices}))
    return f"[{_TITLES[gravest.level]}] {message.deployment}: {monitors}"


def _paragraph(deployment: str, notice: Notice) -> str:
    what = "the monitor fails" if notice.topic == "health" and notice.level != "ok" else notice.monitor
    head = f"[{_TITLES[notice.level]}] {deployment} revision {notice.revision}, {what}: {notice.summary}"
    lines = [head, f"Window {_time(notice.window_start)} to {_time(notice.window_end)} UTC"]
    if notice.since:
        lines[-1] += f", since {_time(notice.since)}"
    if notice.columns:
        moved = ", ".join(f"{name} {distance:.3f}" for name, distance in notice.columns.items())
        lines.append(f"Moved most: {moved}")
    if notice.status == "firing":
        lines += [f"- {reason}" for reason in notice.reasons]
    return "\n".join(lines)


def _time(iso: str) -> str:
    return iso.removesuffix("+00:00").replace("T", " ")


def _secret(reference: str) -> str:
    """What env:NAME or file:PATH refers to; anything else is the value itself."""
    kind, _, place = reference.partition(":")
    if kind == "env":
        if not (value := os.environ.get(place, "")):
            raise NotDeliveredError(f"the environment variable {place} is not set")
        return value
    if kind == "file":
        try:
            return Path(place).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise NotDeliveredError(f"the file {place} cannot be read: {type(error).__name__}") from None
    return reference


def _post(url: str, body: bytes, headers: dict[str, str]) -> None:
    import requests

    headers = {"Content-Type": "application/json", "User-Agent": "mlflow-deploy", **headers}
    try:
        answer = requests.post(
            url, data=body, headers=headers, timeout=_TIMEOUT_SECONDS, allow_redirects=False
        )
    except (requests.RequestException, ValueError) as error:
        # Its text and its cause hold the address, which is the secret of many receivers.
        raise NotDeliveredError(f"the receiver does not answer: {type(error).__name__}") from None
    if not 200 <= answer.status_code < 300:
        raise NotDeliveredError(f"the receiver answered with status {answer.status_code}")


def _escaped(text_: str) -> str:
    """Slack reads these three characters as markup."""
    return text_.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _mail(message: Message, alert: AlertSpec) -> None:
    mail = EmailMessage()
    mail["Subject"] = subject(message)
    mail["From"], mail["To"] = alert.email_from, ", ".join(alert.email)
    mail["Message-ID"] = f"<{message.id}@mlflow-deploy>"
    mail["Date"] = datetime.fromisoformat(message.at)
    mail.set_content(text(message))
    host, _, port = alert.smtp.rpartition(":")
    password = _secret(alert.smtp_password) if alert.smtp_password else ""
    context = ssl.create_default_context()
    try:
        if alert.smtp_security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                host, int(port), timeout=_TIMEOUT_SECONDS, context=context
            )
        else:
            server = smtplib.SMTP(host, int(port), timeout=_TIMEOUT_SECONDS)
        with server:
            if alert.smtp_security == "starttls":
                server.starttls(context=context)
            if alert.smtp_user:
                server.login(alert.smtp_user, password)
            server.send_message(mail)
    except smtplib.SMTPResponseException as error:
        raise NotDeliveredError(f"the mail server answered with {error.smtp_code}") from None
    except (OSError, smtplib.SMTPException) as error:
        raise NotDeliveredError(f"the mail server: {type(error).__name__}") from None


def _run(command: str, body: bytes) -> None:
    try:
        done = subprocess.run(
            shlex.split(command), input=body, capture_output=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise NotDeliveredError(f"the command: {type(error).__name__}") from None
    if done.returncode:
        raise NotDeliveredError(f"the command ended with status {done.returncode}")
